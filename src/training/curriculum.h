// SPDX-License-Identifier: Apache-2.0
// The stages that teach a model, as data: what each trains, on what, for how long, and what it builds on. The order and
// the numbers are the recipe; why each is there stands beside it.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "synth/llava_files.h"
#include "synth/scene.h"
#include "training/crowd_task.h"
#include "training/picture_task.h"
#include "training/trainer.h"

namespace espalier {

struct CurriculumStage {
  enum class Data : uint8_t { kCopying, kShortTurns, kTextBinding, kTower, kPictures, kCrowdedTower, kCrowds };

  StagePlan plan;
  std::string summary;
  Data data;
  std::string after;                                 // the stage whose weights it starts from; empty: fresh ones
  int64_t sequences = 0;                             // a batch; tower: pictures
  int64_t turns = 0;                                 // a sequence; copying: tokens
  double echo = 0;                                   // share of turns that ask for the real name
  double resolve = 0;                                // share of turns about known words that ask for their class
  std::vector<synth::Difficulty> difficulties = {};  // tower: taken in turns; pictures: the one of the pool
  PictureTaskOptions pictures = {};
  CrowdTaskOptions crowds = {};
  int share_layers = 0;  // late reading: layers that should not look at pictures
  int idle_layers = 0;   // at the front: they write nothing yet and are not trained
  int fresh_layers = 0;  // before it begins: so many least needed layers go, as many that do nothing come in front

  bool trains_tower() const { return data == Data::kTower || data == Data::kCrowdedTower; }
  bool has_tower() const {  // and reads pictures through it
    return data == Data::kPictures || (data == Data::kCrowds && crowds.features == PatchFeatures::kTower);
  }
};

struct Recipe {
  std::string name;
  synth::LlavaSize size;
  std::vector<CurriculumStage> stages;  // one of them trains the tower, before those that have one

  const CurriculumStage& stage(std::string_view stage) const;  // throws Error for a name that is not there
  const CurriculumStage& tower() const;
};

const std::vector<Recipe>& recipes();               // "demo", the bundled model, first
const Recipe& recipe_named(std::string_view name);  // throws Error for a name that is not there

}  // namespace espalier
