// SPDX-License-Identifier: Apache-2.0
// What ATP's modules learn on: conversations with pictures that end with an answer. Which one comes when follows from
// the seed; how it becomes tokens is atp_task's.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>

#include "espalier/prompt.h"
#include "synth/scene.h"

namespace espalier {

class AtpExamples {
 public:
  virtual ~AtpExamples() = default;
  // A conversation whose last message is the answer to learn; draw `number` of training, or of the evaluation's own.
  virtual Chat draw(int64_t number, bool is_evaluation) const = 0;
  virtual std::string description() const = 0;  // what a saved run must have been trained on
};

// Items of the benchmark's training split, suites in equal shares and cells of a suite too. Cells with words that
// training never uses are left out. Evaluation draws items of another seed of the same split.
std::unique_ptr<AtpExamples> synthetic_examples(std::span<const std::string> suites,
                                                const synth::Difficulty& difficulty, uint64_t seed);

// Conversations of a file or folder (text/conversations.h), shuffled anew for each round through them; of each, one
// answer with a picture before it, and nothing behind it. One in twenty (at least one, at most `held_out`) is kept for
// evaluation; conversations of text alone are left out. Throws Error when fewer than two have pictures, and from draw()
// when none has an answer behind one.
std::unique_ptr<AtpExamples> conversation_examples(const std::filesystem::path& data,
                                                   const std::filesystem::path& image_folder, int64_t held_out,
                                                   uint64_t seed);

}  // namespace espalier
