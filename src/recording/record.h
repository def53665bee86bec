// SPDX-License-Identifier: Apache-2.0
// Writes what a run computed: the signals that policies read, as files that other tools read (`record`), and the
// tensors that are compared with the reference (`dump`). It alone may hold an n x n map.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "espalier/generation.h"
#include "runtime/loaded_model.h"

namespace espalier {

struct RecordFiles {
  std::filesystem::path signals;  // safetensors, float32; names as in docs/formats.md
  std::filesystem::path layout;   // JSON
  std::vector<std::string> only;  // empty: all; else names ("attention.5") or families ("hidden")
  int64_t generated = 0;          // tokens of the answer
};

// record() of espalier/recording.h on the calling thread, written to both files. Throws Cancelled when a callback
// cancels.
void record(const LoadedModel& model, const Request& request, const RecordFiles& files, const Callbacks& callbacks);

// Runs the whole request and writes PREFIX.safetensors and PREFIX.json. `pixel_values`, if not empty: a safetensors
// file whose tensor of that name replaces the pictures' own pixels.
Result dump(const LoadedModel& model, const Request& request, const std::filesystem::path& prefix,
            const std::filesystem::path& pixel_values, const Callbacks& callbacks);

// The same without writing: the run with prepared pixels.
Result generate_from_pixels(const LoadedModel& model, const Request& request, const std::filesystem::path& pixel_values,
                            const Callbacks& callbacks);

}  // namespace espalier
