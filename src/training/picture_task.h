// SPDX-License-Identifier: Apache-2.0
// Trains projector and decoder on pictures of a pool: in-context binding, questions about one picture, and questions
// about a word that the examples before defined. How much of a picture the decoder sees grows from stage to stage.
#pragma once

#include <array>
#include <memory>

#include "training/language_task.h"
#include "training/scene_pool.h"

namespace espalier {

enum class PictureTokens : uint8_t {
  kMean,  // one: the mean over the patches of what is asked
  kSome,  // some of the patches, those of objects and spot first
  kAll,
};

struct PictureTaskOptions {
  PictureTokens tokens = PictureTokens::kMean;
  int64_t some = 16;       // for kSome
  int64_t fewest = 0;      // if not 0, a sequence of bindings or definitions draws how many, from here to `some`
  double all_batches = 0;  // share of kSome's batches that show all: the share of object patches tells their number
  int64_t sequences = 8;
  int64_t turns = 12;        // a sequence
  int64_t turns_of_all = 6;  // a sequence of the batches with all tokens
  double echo = 0.3;         // share of a binding sequence's turns that ask for the real name
  double questions = 0;      // share of sequences that ask about one picture at a time
  double definitions = 0;    // share of sequences that ask about words just defined, of whose questions
  double resolve = 0;        // this share asks for the class that the word names,
  double real = 0;           // and of the others this share has the class's real name in place of the word
  std::array<double, synth::kNumAttributes> attribute_share = {1, 1, 1};  // the late one more often
};

// What evaluation tells apart: an average hides an attribute that has not clicked yet.
const std::vector<std::string>& picture_topics();

std::unique_ptr<LanguageTask> picture_task(const LlavaConfig& config, const TurnTokens& tokens, const ScenePool& pool,
                                           const LanguageTaskOptions& language, const PictureTaskOptions& options,
                                           uint64_t seed);

}  // namespace espalier
