// SPDX-License-Identifier: Apache-2.0
// Trains projector and decoder on crowded pictures, in-context tasks and screens (synth/items.h), drawn anew for every
// step: questions about one picture at a time, examples that show which trait is meant, sequences of screens. How many
// objects a picture has and how much of it the decoder sees grows from stage to stage.
#pragma once

#include <memory>
#include <vector>

#include "pictures/image_processor.h"
#include "synth/crowd.h"
#include "training/language_task.h"

namespace espalier {

enum class PatchFeatures : uint8_t {
  kLabels,  // what covers each patch, spelled out: the decoder learns the questions whatever the tower is worth
  kTower,
};

struct CrowdTaskOptions {
  PatchFeatures features = PatchFeatures::kTower;
  synth::Difficulty difficulty = {};
  int fewest = synth::kFewestInCrowd, most = synth::kMostInCrowd;  // objects of a picture
  int64_t shown = 0;  // patches of a picture that the decoder sees, those first that its questions need; 0: all
  int64_t sequences = 8;
  int64_t pictures = 3;   // of a sequence of questions or of examples
  int64_t questions = 3;  // about each picture: those after the first come without the picture, as if it were pruned
  std::vector<synth::CrowdAsk> asks = {synth::CrowdAsk::kColourOf, synth::CrowdAsk::kShapeOf, synth::CrowdAsk::kPlaceOf,
                                       synth::CrowdAsk::kSpotOf};
  double in_context = 0;  // share of sequences
  double screens = 0;     // likewise
  // Share of these two that ask what an item asks, once per picture; the others ask more about each picture.
  double like_items = 0.5;
};

// What evaluation tells apart: an average hides a question that has not clicked yet.
const std::vector<std::string>& crowd_topics();

// `parameters`: of the tower, which stands still and is read here once.
std::unique_ptr<LanguageTask> crowd_task(const LlavaConfig& config, const TurnTokens& tokens,
                                         const ImageProcessor& processor, const Parameters& parameters,
                                         const LanguageTaskOptions& language, const CrowdTaskOptions& options,
                                         uint64_t seed);

}  // namespace espalier
