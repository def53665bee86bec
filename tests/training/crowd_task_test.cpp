// SPDX-License-Identifier: Apache-2.0
// Training on crowds, in-context tasks and screens with a model of toy size: every scored answer is found again in the
// tokens that the decoder would see, what evaluation covers, that short runs lower the losses, and that the recipe
// holds together.
#include "training/crowd_task.h"

#include <gtest/gtest.h>
#include <torch/types.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <iterator>
#include <map>
#include <memory>
#include <set>
#include <sstream>
#include <utility>

#include "espalier/error.h"
#include "tests/support/tensors.h"
#include "training/curriculum.h"
#include "training/label_reading.h"
#include "training/layer_surgery.h"
#include "training/model_folder.h"
#include "training/patch_labels.h"
#include "training/tower_task.h"
#include "training/trainer.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;
using synth::CrowdAsk;

constexpr int kGrid = synth::kCrowdGrid;
constexpr int64_t kPatches = int64_t{kGrid} * kGrid;

// What a patch shows once its features are read back; -1 for what it does not.
struct Seen {
  int thing = -1, shape = -1, colour = -1, mark = -1, row = -1, column = -1;
  std::string says = {};  // what its token is trained to say
};

Seen read_back(const at::Tensor& features) {
  const std::vector<double> values = test::to_doubles(features);
  const std::array<int, 6> sizes = {8, 6, 6, 6, kGrid, kGrid};
  std::array<int, 6> found{};
  size_t at = 0;
  for (size_t set = 0; set < sizes.size(); ++set) {
    found[set] = -1;
    for (int i = 0; i < sizes[set]; ++i)
      if (values[at++] != 0) found[set] = i;
  }
  return {found[0], found[1], found[2], found[3], found[4], found[5]};
}

class CrowdTasks : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = fs::temp_directory_path() / ("espalier_crowd_tasks_" + std::to_string(::getpid()));
    fs::remove_all(folder_);
    write_model_files(folder_, synth::kCrowdedSize);
    tokenizer_ = std::make_unique<Tokenizer>(Tokenizer::load(folder_));
    tokens_ = std::make_unique<TurnTokens>(*tokenizer_);
    processor_ = std::make_unique<ImageProcessor>(ImageProcessor::load(folder_));
  }
  static void TearDownTestSuite() {
    fs::remove_all(folder_);
    tokens_.reset();
    tokenizer_.reset();
    processor_.reset();
  }
  static LlavaConfig tiny() {
    LlavaConfig config = model_config(synth::kCrowdedSize);
    config.vision.hidden_size = 64;
    config.vision.intermediate_size = 64;
    config.vision.num_layers = 2;
    config.vision.num_heads = 2;
    config.decoder.hidden_size = 48;
    config.decoder.intermediate_size = 64;
    config.decoder.num_layers = 2;
    config.decoder.num_heads = config.decoder.num_kv_heads = 2;
    config.decoder.head_dim = 24;
    return config;
  }
  static std::unique_ptr<LanguageTask> task(const LlavaConfig& config, const Parameters& parameters,
                                            const CrowdTaskOptions& options) {
    return crowd_task(config, *tokens_, *processor_, parameters, {.evaluation_batches = 4}, options, 5);
  }

  static fs::path folder_;
  static std::unique_ptr<Tokenizer> tokenizer_;
  static std::unique_ptr<TurnTokens> tokens_;
  static std::unique_ptr<ImageProcessor> processor_;
};
fs::path CrowdTasks::folder_;
std::unique_ptr<Tokenizer> CrowdTasks::tokenizer_;
std::unique_ptr<TurnTokens> CrowdTasks::tokens_;
std::unique_ptr<ImageProcessor> CrowdTasks::processor_;

// ---- a reader of batches ----

struct ReadTurn {
  std::string question, answer;
  bool has_picture = false;
  bool is_scored = false;
  std::vector<Seen> picture;  // the one that the turn is about
};

using ReadSequence = std::vector<ReadTurn>;

std::vector<ReadSequence> read(const TrainingBatch& batch, const TurnTokens& tokens, const Tokenizer& tokenizer) {
  const auto as_ints = [](const at::Tensor& t) {
    std::vector<int64_t> values;
    for (const double v : test::to_doubles(t)) values.push_back(static_cast<int64_t>(v));
    return values;
  };
  const std::vector<int64_t> ids = as_ints(batch.ids), begin = as_ints(batch.begin), rows = as_ints(batch.image_rows);
  const std::vector<int64_t> scored = as_ints(batch.scored_rows), targets = as_ints(batch.targets);
  std::map<int64_t, int32_t> target_of;  // by row
  for (size_t i = 0; i < scored.size(); ++i) target_of[scored[i]] = static_cast<int32_t>(targets[i]);
  std::map<int64_t, int64_t> feature_of;  // row -> number among the image tokens
  for (size_t i = 0; i < rows.size(); ++i) feature_of[rows[i]] = static_cast<int64_t>(i);
  std::vector<ReadSequence> sequences;
  for (size_t s = 0; s + 1 < begin.size(); ++s) {
    ReadSequence& sequence = sequences.emplace_back();
    std::vector<Seen> picture;
    std::vector<int32_t> text;
    bool has_picture = false;
    for (int64_t row = begin[s] + 1; row < begin[s + 1]; ++row) {
      if (feature_of.contains(row)) {
        if (!has_picture) picture.clear();
        has_picture = true;
        picture.push_back(read_back(batch.features[feature_of[row]]));
        if (target_of.contains(row)) picture.back().says = tokenizer.decode(std::vector{target_of[row]});
        continue;
      }
      const int64_t id = ids[static_cast<size_t>(row)];
      if (id != tokens.end()) {
        text.push_back(static_cast<int32_t>(id));
        continue;
      }
      const std::string turn = tokenizer.decode(text);  // "USER: \nwhat …? ASSISTANT: red"
      const size_t from = turn.find('\n') + 1, to = turn.find(" ASSISTANT: ");
      sequence.push_back({.question = turn.substr(from, to - from),
                          .answer = turn.substr(to + 12),
                          .has_picture = has_picture,
                          .is_scored = target_of.contains(row - 2),
                          .picture = picture});
      text.clear();
      has_picture = false;
    }
  }
  return sequences;
}

std::string names_of(const std::vector<Seen>& picture, int Seen::*what, auto is_meant) {
  std::set<std::string> names;
  for (const Seen& seen : picture)
    if (is_meant(seen) && seen.*what >= 0)
      names.insert(std::string(what == &Seen::shape ? synth::kShapeNames[static_cast<size_t>(seen.*what)]
                                                    : synth::kColourNames[static_cast<size_t>(seen.*what)]));
  return names.size() == 1 ? *names.begin() : "";
}

std::string place_of(const std::vector<Seen>& picture, auto is_meant) {
  const auto seen = std::ranges::find_if(picture, is_meant);
  if (seen == picture.end()) return "";
  return std::string(
      synth::kPlaceNames[static_cast<size_t>(2 * (seen->row >= kGrid / 2) + (seen->column >= kGrid / 2))]);
}

template <size_t n>
int number_of(const std::array<std::string_view, n>& names, const std::string& word) {
  return static_cast<int>(std::ranges::find(names, word) - names.begin());
}

std::string colour_in(const std::vector<Seen>& picture, int label) {
  return names_of(picture, &Seen::colour, [&](const Seen& seen) { return seen.shape == label; });
}

// The answer as far as the tokens show it; `example`: an earlier answer that shows which trait is meant.
std::string solve(const ReadSequence& sequence, size_t t, const std::string& example) {
  const std::vector<Seen>& picture = sequence[t].picture;
  std::string question = sequence[t].question;
  std::erase(question, '?');
  std::istringstream in(question);
  const std::vector<std::string> w{std::istream_iterator<std::string>(in), {}};
  const auto shape = [&](size_t i) { return number_of(synth::kShapeNames, w.at(i)); };
  const auto colour = [&](size_t i) { return number_of(synth::kColourNames, w.at(i)); };
  const auto is_kind = [&](size_t i) {
    return [c = colour(i), s = shape(i + 1)](const Seen& seen) { return seen.colour == c && seen.shape == s; };
  };
  if (question == "what is pressed")
    return names_of(picture, &Seen::shape, [](const Seen& seen) { return seen.thing == 6; });
  if (question == "what changed" || question == "what did not change") {
    std::vector<std::vector<Seen>> screens;
    for (size_t i = 0; i <= t; ++i)
      if (sequence[i].has_picture) screens.push_back(sequence[i].picture);
    std::string found;
    for (int label = 0; label < 6; ++label) {
      const std::string now = colour_in(screens.back(), label), before = colour_in(*std::prev(screens.end(), 2), label);
      const bool changed = now != before;
      if (!now.empty() && !before.empty() && changed == (question == "what changed"))
        found += synth::kShapeNames[static_cast<size_t>(label)];
    }
    return found;
  }
  if (question.starts_with("what colour was")) return colour_in(sequence[0].picture, shape(4));
  if (question.starts_with("what has")) {
    const auto is_meant = [&](const Seen& seen) { return seen.mark == colour(3); };
    if (std::ranges::count(synth::kPlaceNames, example)) return place_of(picture, is_meant);
    return names_of(picture, std::ranges::count(synth::kShapeNames, example) ? &Seen::shape : &Seen::colour, is_meant);
  }
  if (question.starts_with("what shape is"))
    return names_of(picture, &Seen::shape, [&](const Seen& seen) { return seen.colour == colour(3); });
  if (question.starts_with("where")) return place_of(picture, is_kind(3));
  if (question.starts_with("what spot")) return names_of(picture, &Seen::mark, is_kind(5));
  return colour_in(picture, shape(4));
}

// Every scored answer of questions, examples and screens follows from the patches that the decoder sees: all of them,
// or those that are needed.
TEST_F(CrowdTasks, AnswersFollowFromTheTokens) {
  const torch::NoGradGuard no_gradients;
  const LlavaConfig config = tiny();
  const Parameters parameters = initial_parameters(config, 1);
  std::set<std::string> kinds;
  struct Case {
    int64_t shown;
    double like_items;
  };
  // Of dense screens no patch is needed more than others, so that only all of them show every answer.
  for (const auto [shown, like_items] : {Case{0, 0}, Case{0, 1}, Case{60, 1}}) {
    const auto made = task(config, parameters,
                           {.features = PatchFeatures::kLabels,
                            .shown = shown,
                            .sequences = 10,
                            .pictures = 3,
                            .questions = 3,
                            .in_context = 0.3,
                            .screens = 0.4,
                            .like_items = like_items});
    for (int64_t number = 0; number < 6; ++number) {
      const TrainingBatch batch = made->batch(number, /*is_evaluation=*/false);
      EXPECT_EQ(batch.image_rows.size(0), batch.features.size(0));
      for (const ReadSequence& sequence : read(batch, *tokens_, *tokenizer_))
        for (size_t t = 0; t < sequence.size(); ++t) {
          const ReadTurn& turn = sequence[t];
          const bool is_first_example = turn.question.starts_with("what has") && t == 0;
          EXPECT_EQ(turn.is_scored, !is_first_example);
          if (!turn.is_scored) continue;
          EXPECT_EQ(solve(sequence, t, sequence[0].answer), turn.answer) << turn.question;
          EXPECT_EQ(std::ssize(turn.picture), shown > 0 ? shown : kPatches);
          kinds.insert(turn.question.substr(0, 9));
        }
    }
  }
  EXPECT_EQ(kinds, (std::set<std::string>{"what colo", "what shap", "where is ", "what spot", "what has ", "what is p",
                                          "what chan", "what did "}));
}

// The patches of a button say whether its colour is another than on the screen before; nothing else says anything.
TEST_F(CrowdTasks, ButtonsSayWhetherTheyChanged) {
  const torch::NoGradGuard no_gradients;
  const LlavaConfig config = tiny();
  const Parameters parameters = initial_parameters(config, 1);
  const auto made =
      task(config, parameters, {.features = PatchFeatures::kLabels, .sequences = 8, .in_context = 0.2, .screens = 0.6});
  std::map<std::string, int> said;
  for (int64_t number = 0; number < 4; ++number)
    for (const ReadSequence& sequence : read(made->batch(number, /*is_evaluation=*/false), *tokens_, *tokenizer_)) {
      std::vector<Seen> before, shown;
      for (const ReadTurn& turn : sequence) {
        if (!turn.has_picture) continue;
        before = std::exchange(shown, turn.picture);
        const bool is_screen = std::ranges::any_of(shown, [](const Seen& seen) { return seen.thing == 6; });
        for (const Seen& seen : shown) {
          const bool speaks = is_screen && !before.empty() && seen.shape >= 0;
          const bool changed = speaks && colour_in(shown, seen.shape) != colour_in(before, seen.shape);
          EXPECT_EQ(seen.says, !speaks ? "" : changed ? "changed" : "not");
          ++said[seen.says];
        }
      }
    }
  EXPECT_EQ(said.size(), 3U);
}

TEST_F(CrowdTasks, BatchesAreFunctionsOfTheirNumber) {
  const torch::NoGradGuard no_gradients;
  const LlavaConfig config = tiny();
  const Parameters parameters = initial_parameters(config, 1);
  const CrowdTaskOptions options = {.difficulty = {true, true}, .shown = 20, .sequences = 2, .screens = 0.5};
  const TrainingBatch first = task(config, parameters, options)->batch(3, false);
  const TrainingBatch second = task(config, parameters, options)->batch(3, false);
  test::expect_same(first.ids, second.ids);
  test::expect_same(first.features, second.features);
  const TrainingBatch evaluation = task(config, parameters, options)->batch(3, true);
  EXPECT_FALSE(first.ids.sizes() == evaluation.ids.sizes() && first.ids.equal(evaluation.ids));
}

TEST_F(CrowdTasks, EvaluationTellsWhatIsAskedApart) {
  const LlavaConfig config = tiny();
  const Parameters parameters = initial_parameters(config, 1);
  const auto topics = [&](CrowdTaskOptions options) {
    options.features = PatchFeatures::kLabels;
    options.shown = 8;
    std::vector<std::string> names;
    for (const Score& s : task(config, parameters, options)->evaluate(parameters)) names.push_back(s.topic);
    return names;
  };
  EXPECT_EQ(topics({.asks = {CrowdAsk::kPlaceOf, CrowdAsk::kSpotOf}}),
            (std::vector<std::string>{"place of", "spot of"}));
  EXPECT_EQ(topics({.in_context = 1}), (std::vector<std::string>{"colour meant", "shape meant", "place meant"}));
  EXPECT_EQ(topics({.screens = 1}),
            (std::vector<std::string>{"pressed", "now", "changed", "unchanged", "before", "patch changed"}));
}

TEST_F(CrowdTasks, LabelsSayWhatTheCoversSay) {
  synth::Draws draws(7);
  const std::vector<synth::Member> members = synth::draw_members(draws, 9);
  const synth::Scene scene = synth::crowded_scene(7, {true, true}, members);
  const auto covers = synth::patch_covers(synth::draw(scene, synth::kCrowdSide), kGrid, kGrid);
  const std::vector<PatchLabel> labels = patch_labels(scene, covers);
  const at::Tensor features = label_features(labels, 64);
  ASSERT_EQ(labels.size(), covers.size());
  int things = 0;
  for (size_t p = 0; p < covers.size(); ++p) {
    const Seen seen = read_back(features[static_cast<int64_t>(p)]);
    EXPECT_EQ(seen.thing, static_cast<int>(covers[p].by));
    EXPECT_EQ(seen.row, static_cast<int>(p) / kGrid);
    EXPECT_EQ(seen.column, static_cast<int>(p) % kGrid);
    const bool is_thing = covers[p].by == synth::Cover::By::kObject || covers[p].by == synth::Cover::By::kMark;
    EXPECT_EQ(seen.shape, is_thing ? static_cast<int>(members[covers[p].object].shape) : -1);
    EXPECT_EQ(seen.colour, is_thing ? static_cast<int>(members[covers[p].object].colour) : -1);
    EXPECT_EQ(seen.mark, is_thing ? static_cast<int>(members[covers[p].object].mark) : -1);
    things += is_thing;
  }
  EXPECT_GT(things, 30);
  EXPECT_THROW(label_features(labels, 32), Error);
}

TEST_F(CrowdTasks, AShortRunLowersTheLossOfTheDecoder) {
  const LlavaConfig config = tiny();
  Parameters parameters = initial_parameters(config, 1);
  const auto made = crowd_task(config, *tokens_, *processor_, parameters, {.evaluation_batches = 1},
                               {.shown = 6, .sequences = 4, .pictures = 2, .in_context = 0.2, .screens = 0.2}, 4);
  const double before = made->loss(parameters, 1000).item<double>();
  const StagePlan short_plan{.name = "crowds",
                             .schedule = {.peak = 5e-3, .warm_up = 5, .steps = 30},
                             .optimizer = {},
                             .trained = {"decoder.", "lm_head.", "projector."},
                             .evaluate_every = 30,
                             .save_every = 30,
                             .stop = {}};
  run_stage(short_plan, *made, parameters, 4, folder_, {});
  EXPECT_LT(made->loss(parameters, 1000).item<double>(), 0.7 * before);
}

TEST_F(CrowdTasks, AShortRunLowersTheLossOfTheTower) {
  const LlavaConfig config = tiny();
  Parameters parameters = initial_parameters(config, 1);
  add_tower_heads(config, TowerPictures::kCrowded, parameters, 1);
  const auto made =
      tower_task(config, *processor_,
                 {.pictures = TowerPictures::kCrowded, .images = 6, .difficulties = {{}}, .evaluation_images = 12}, 4);
  const double before = made->loss(parameters, 1000).item<double>();
  const StagePlan short_plan{.name = "crowded-tower",
                             .schedule = {.peak = 3e-3, .warm_up = 5, .steps = 30},
                             .optimizer = {},
                             .trained = {"vision.", "heads."},
                             .evaluate_every = 30,
                             .save_every = 30,
                             .stop = {}};
  const StageResult end = run_stage(short_plan, *made, parameters, 4, folder_, {});
  EXPECT_LT(made->loss(parameters, 1000).item<double>(), 0.85 * before);
  ASSERT_EQ(end.scores.size(), 7U);
  EXPECT_EQ(end.scores[0].count, 6);                  // members: of the crowds
  EXPECT_EQ(end.scores[1].count, 12 * kPatches);      // thing: of every patch
  EXPECT_GT(end.scores[2].count, 12 * kPatches / 5);  // shape: of those of objects and buttons
}

// A projector after the map says of the tower's features nearly what it said of the labels before. This tower knows
// rows and columns, about half of what the labels say, and is asked about pictures that the map was not fitted to.
TEST_F(CrowdTasks, LabelsAreReadFromATower) {
  const torch::NoGradGuard no_gradients;
  const LlavaConfig config = tiny();
  Parameters parameters = initial_parameters(config, 1);
  at::Tensor places = torch::zeros({1 + kPatches, config.vision.hidden_size});  // after the class token
  for (int64_t p = 0; p < kPatches; ++p) places[1 + p][p / kGrid] = places[1 + p][kGrid + p % kGrid] = 10;
  parameters.set("vision.embeddings.position_embedding.weight", places);
  const auto first_layer = [&](const at::Tensor& features) {
    return torch::linear(features, parameters.at("projector.linear_1.weight"),
                         parameters.at("projector.linear_1.bias"));
  };
  std::vector<synth::Drawing> drawings;
  std::vector<at::Tensor> labels;
  for (int64_t i = 0; i < 8; ++i) {
    const synth::Scene scene = crowded_picture(static_cast<uint64_t>(100 + i), i, {});
    drawings.push_back(synth::draw(scene, synth::kCrowdSide));
    labels.push_back(label_features(patch_labels(scene, synth::patch_covers(drawings.back(), kGrid, kGrid)),
                                    config.vision.hidden_size));
  }
  const at::Tensor expected = first_layer(torch::cat(labels));
  read_labels_from_tower(config, *processor_, parameters, 3);
  const ClipWeights tower = bind_parameters(config, parameters, torch::kFloat).vision;
  const at::Tensor said = first_layer(patch_features(config, tower, *processor_, drawings));
  const double left = (said - expected).square().sum().item<double>();
  const double around_mean = (expected - expected.mean(0)).square().sum().item<double>();
  EXPECT_LT(left, 0.7 * around_mean);
  EXPECT_GT(left, 0.2 * around_mean);
}

TEST_F(CrowdTasks, LayersThatStandStillAreNotTrained) {
  const LlavaConfig config = tiny();
  Parameters parameters = initial_parameters(config, 1);
  silence_first_layers(parameters, 1);
  std::map<std::string, at::Tensor> before;
  for (const Parameter& p : parameters.all()) before[p.name] = p.master.detach().clone();
  const auto made = crowd_task(config, *tokens_, *processor_, parameters, {.evaluation_batches = 1},
                               {.features = PatchFeatures::kLabels, .shown = 6, .sequences = 2, .pictures = 2}, 4);
  const StagePlan plan{.name = "still",
                       .schedule = {.peak = 5e-3, .warm_up = 0, .steps = 2},
                       .optimizer = {},
                       .trained = {"decoder.", "lm_head.", "projector."},
                       .still = {layer_prefix(0)},
                       .evaluate_every = 2,
                       .save_every = 2,
                       .stop = {}};
  run_stage(plan, *made, parameters, 4, folder_, {});
  for (const Parameter& p : parameters.all()) {
    const bool stands = p.name.starts_with("vision.") || p.name.starts_with(layer_prefix(0));
    EXPECT_EQ(p.master.detach().equal(before[p.name]), stands) << p.name;
  }
}

// Every stage builds on one before it, and reads pictures only behind the stage that trains the tower.
TEST(Recipes, HoldTogether) {
  for (const Recipe& recipe : recipes()) {
    std::set<std::string> done;
    for (const CurriculumStage& stage : recipe.stages) {
      EXPECT_TRUE(stage.after.empty() || done.contains(stage.after)) << stage.plan.name;
      EXPECT_TRUE(!stage.has_tower() || done.contains(recipe.tower().plan.name)) << stage.plan.name;
      EXPECT_TRUE(done.insert(stage.plan.name).second);
    }
    int64_t numbers = 0;
    const LlavaConfig config = model_config(recipe.size);
    const Parameters parameters = initial_parameters(config, 0);
    for (const Parameter& p : parameters.all()) numbers += p.master.numel();
    EXPECT_LT(2 * numbers, 24'000'000) << recipe.name;  // bytes in bfloat16
  }
  EXPECT_EQ(model_config(recipe_named("crowded").size).vision.num_patches(), kPatches);
  EXPECT_THROW(recipe_named("none"), Error);
}

}  // namespace
}  // namespace espalier
