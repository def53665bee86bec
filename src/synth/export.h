// SPDX-License-Identifier: Apache-2.0
// Writes items as a folder that any program can read: PNG pictures, messages.json in the Hugging Face chat form, and
// index.jsonl with what a grader needs. Not here: the command line, asking a model.
//
//   DIR/index.jsonl                        one line per item: its cell, answer, choices, and what covers which patch
//   DIR/bind/shape-2x1/000000/messages.json, 0.png, 1.png, …
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "synth/items.h"

namespace espalier::synth {

struct ExportOptions {
  std::filesystem::path folder;  // must not exist, or be empty
  std::vector<Cell> cells;
  Split split = Split::kTest;
  uint64_t seed = 0;
  int64_t items = 10;  // of each cell
  Difficulty difficulty;
  std::optional<int> side, grid;  // pixels, and patches in index.jsonl, along a side; none: each cell's own
};

struct ExportProgress {
  std::function<void(int64_t done, int64_t total)> show;
  std::function<bool()> should_cancel;
};

struct ExportedCell {
  std::string cell;
  int64_t items = 0;
  std::string sha256;  // ItemDigest of its items as drawn at the cell's own side
};

// All or nothing: an exception or a cancelled run (empty result) leaves no folder behind. Throws Error when the folder
// is there already or cannot be written.
std::vector<ExportedCell> export_items(const ExportOptions& options, const ExportProgress& progress);

}  // namespace espalier::synth
