// SPDX-License-Identifier: Apache-2.0
#include "training/curriculum.h"

#include <algorithm>

#include "espalier/error.h"

namespace espalier {

namespace {

using Data = CurriculumStage::Data;

// Of the stages that train the decoder; the pictures' features are computed once, so the tower stands still there.
StagePlan decoder_plan(const std::string& name, bool has_pictures, double peak, int64_t steps, int64_t evaluate_every,
                       const StopRule& stop) {
  StagePlan plan{.name = name,
                 .schedule = {.peak = peak, .warm_up = 50, .steps = steps},
                 .optimizer = {},
                 .trained = {"decoder.", "lm_head."},
                 .evaluate_every = evaluate_every,
                 .save_every = 200,
                 .stop = stop};
  if (has_pictures) plan.trained.emplace_back("projector.");
  return plan;
}

constexpr synth::Difficulty kHard = {.clutter = true, .distractor = true};

std::vector<CurriculumStage> demo_curriculum() {
  return {
      // Pairs whose key is another's value stay open, so .97 takes twice as long.
      {.plan = decoder_plan("copying", false, 1e-3, 3000, 50, {.accuracy = 0.95}),
       .summary = "copying, text only",
       .data = Data::kCopying,
       .after = "",
       .sequences = 16,
       .turns = 64},
      // The real turn has five tokens between what is named and the name: from copying straight to it stayed at chance
      // for 3000 steps, with the turn growing it clicks within 200. Resolving, the way back from a word to its class,
      // stayed at chance for 350 steps on whole turns; growing along, it clicks a few hundred steps behind binding.
      {.plan = decoder_plan("short-turns", false, 1e-3, 3000, 50, {.accuracy = 0.97}),
       .summary = "turns of binding and of resolving that grow from a pair to the whole turn, text only",
       .data = Data::kShortTurns,
       .after = "copying",
       .sequences = 12,
       .turns = 18,
       .resolve = 0.4},
      {.plan = decoder_plan("text-binding", false, 1e-3, 3000, 50, {.accuracy = 0.97}),
       .summary = "binding and resolving, text only",
       .data = Data::kTextBinding,
       .after = "short-turns",
       .sequences = 8,
       .turns = 18,
       .echo = 0.3,
       .resolve = 0.4},
      // Beside the three above.
      {.plan = {.name = "tower",
                .schedule = {.peak = 1.5e-3, .warm_up = 100, .steps = 3000},
                .optimizer = {},
                .trained = {"vision.", "heads."},
                .evaluate_every = 200,
                .save_every = 200,
                .stop = {.accuracy = 0.995}},
       .summary = "vision tower with throw-away heads",
       .data = Data::kTower,
       .after = "",
       .sequences = 64,
       .difficulties = {{}, kHard}},
      // A question about a word just defined ("what colour is the dax?") is three hops: from the word to its example,
      // to the class shown there, to the object of that class. Asked whole it never clicked; with the first two hops
      // asked for on their own, the third is learned as any question about a picture is.
      {.plan = decoder_plan("one-token", true, 1e-3, 3000, 50, {.accuracy = 0.97}),
       .summary = "binding and resolving, one token per picture",
       .data = Data::kPictures,
       .after = "text-binding",
       .difficulties = {kHard},
       .pictures = {.tokens = PictureTokens::kMean,
                    .sequences = 8,
                    .turns = 12,
                    .echo = 0.3,
                    .definitions = 0.3,
                    .resolve = 1}},
      // The picture grows as the turn did: with two tokens, one of the object and one of the spot, what the question
      // asks about decides which of them is bound. Places are learned last, and in the next stage anyway.
      {.plan = decoder_plan("few-tokens", true, 1e-3, 3000, 50,
                            {.accuracy = 0.94, .except = {"position", "defined position"}}),
       .summary = "binding and definitions, two to eight tokens a picture",
       .data = Data::kPictures,
       .after = "one-token",
       .difficulties = {kHard},
       .pictures = {.tokens = PictureTokens::kSome,
                    .some = 8,
                    .fewest = 2,
                    .sequences = 10,
                    .turns = 10,
                    .echo = 0.3,
                    .definitions = 0.5,
                    .resolve = 0.3,
                    .real = 0.3,
                    .attribute_share = {1, 1, 1.5}}},
      // Reading must move behind layer 2, or no policy inside the decoder can be told from another.
      {.plan = decoder_plan("late-reading", true, 1e-3, 1600, 100, {.accuracy = 0.95}),
       .summary = "binding, definitions and questions, 16 of 64 tokens, read after layer 2",
       .data = Data::kPictures,
       .after = "few-tokens",
       .difficulties = {kHard},
       .pictures = {.tokens = PictureTokens::kSome,
                    .some = 16,
                    .all_batches = 0.1,
                    .sequences = 12,
                    .turns = 8,
                    .turns_of_all = 6,
                    .echo = 0.3,
                    .questions = 0.3,
                    .definitions = 0.35,
                    .resolve = 0.25,
                    .real = 0.25,
                    .attribute_share = {1, 1, 1.5}},
       .share_layers = 2,
       .fresh_layers = 2},
      {.plan = decoder_plan("all-tokens", true, 5e-4, 1000, 100, {.accuracy = 0.97}),
       .summary = "the same, all 64 tokens",
       .data = Data::kPictures,
       .after = "late-reading",
       .difficulties = {kHard},
       .pictures = {.tokens = PictureTokens::kAll,
                    .sequences = 6,
                    .turns = 6,
                    .echo = 0.2,
                    .questions = 0.4,
                    .definitions = 0.25,
                    .resolve = 0.15,
                    .real = 0.2,
                    .attribute_share = {1, 1, 1}},
       .share_layers = 2},
  };
}

std::vector<CurriculumStage> crowded_curriculum() {
  return {
      // What a picture shows is spelled out for each patch, so that the questions are learned before there is a tower,
      // at the price of a decoder's steps alone. Few objects first: which one is meant is then a choice of a few.
      // Two layers in front stand still until the tower comes: what reads pictures comes after them, or no policy
      // inside the decoder could be told from another.
      {.plan = decoder_plan("labels-few", true, 1e-3, 4000, 100, {.accuracy = 0.95}),
       .summary = "questions about two to five objects, their patches spelled out",
       .data = Data::kCrowds,
       .after = "",
       .crowds = {.features = PatchFeatures::kLabels,
                  .fewest = 2,
                  .most = 5,
                  .shown = 12,
                  .sequences = 12,
                  .pictures = 4,
                  .questions = 3},
       .idle_layers = 2},
      {.plan = decoder_plan("labels-crowd", true, 1e-3, 6000, 100, {.accuracy = 0.95}),
       .summary = "questions about crowds, a third of the patches spelled out",
       .data = Data::kCrowds,
       .after = "labels-few",
       .crowds = {.features = PatchFeatures::kLabels, .shown = 48, .sequences = 8, .pictures = 2, .questions = 4},
       .idle_layers = 2},
      // What did not change is learned last; the stages after this one ask the same questions.
      {.plan = decoder_plan("labels-sequences", true, 1e-3, 10000, 100, {.accuracy = 0.85}),
       .summary = "crowds, examples that show which trait is meant, and screens, a third of the patches spelled out",
       .data = Data::kCrowds,
       .after = "labels-crowd",
       .crowds = {.features = PatchFeatures::kLabels,
                  .shown = 48,
                  .sequences = 8,
                  .pictures = 3,
                  .questions = 4,
                  .in_context = 0.3,
                  .screens = 0.6,
                  .like_items = 0.25},
       .idle_layers = 2},
      // Beside the three above.
      {.plan = {.name = "tower",
                .schedule = {.peak = 1.5e-3, .warm_up = 100, .steps = 8000},
                .optimizer = {},
                .trained = {"vision.", "heads."},
                .evaluate_every = 200,
                .save_every = 100,
                .stop = {.accuracy = 0.99, .except = {"members", "thing"}}},
       .summary = "vision tower with throw-away heads, on crowds and screens",
       .data = Data::kCrowdedTower,
       .after = "",
       .sequences = 32,
       .difficulties = {{}, kHard}},
      {.plan = decoder_plan("some-tokens", true, 5e-4, 3000, 100, {.accuracy = 0.95}),
       .summary = "the same, a third of the patches through the tower, not read by the first two layers",
       .data = Data::kCrowds,
       .after = "labels-sequences",
       .crowds = {.difficulty = kHard, .shown = 48, .sequences = 6, .questions = 4, .in_context = 0.3, .screens = 0.5},
       .share_layers = 2},
      {.plan = decoder_plan("all-tokens", true, 5e-4, 1600, 100, {.accuracy = 0.97}),
       .summary = "the same, all 144 tokens",
       .data = Data::kCrowds,
       .after = "some-tokens",
       .crowds = {.difficulty = kHard, .sequences = 4, .questions = 4, .in_context = 0.35, .screens = 0.45},
       .share_layers = 2},
  };
}

}  // namespace

const CurriculumStage& Recipe::stage(std::string_view wanted) const {
  const auto found = std::ranges::find_if(stages, [&](const CurriculumStage& s) { return s.plan.name == wanted; });
  if (found == stages.end()) throw Error("train-demo: there is no stage " + std::string(wanted));
  return *found;
}

const CurriculumStage& Recipe::tower() const {
  return *std::ranges::find_if(stages, &CurriculumStage::trains_tower);
}

const std::vector<Recipe>& recipes() {
  static const std::vector<Recipe> all = {{"demo", synth::kDemoSize, demo_curriculum()},
                                          {"crowded", synth::kCrowdedSize, crowded_curriculum()}};
  return all;
}

const Recipe& recipe_named(std::string_view name) {
  const auto found = std::ranges::find(recipes(), name, &Recipe::name);
  if (found == recipes().end())
    throw Error("train-demo: there is no recipe " + std::string(name) + ": expected demo or crowded");
  return *found;
}

}  // namespace espalier
