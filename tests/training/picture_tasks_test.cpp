// SPDX-License-Identifier: Apache-2.0
// Tasks on pictures with a tower of toy size: the pool's index and its cached features, what evaluation covers, and
// that short runs lower the losses.
#include <gtest/gtest.h>
#include <torch/types.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <set>

#include "families/llava/tower.h"
#include "pictures/image_processor.h"
#include "tests/support/tensors.h"
#include "training/model_folder.h"
#include "training/picture_task.h"
#include "training/tower_task.h"
#include "training/trainer.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;
using synth::Attribute;

class PictureTasks : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = fs::temp_directory_path() / ("espalier_picture_tasks_" + std::to_string(::getpid()));
    fs::remove_all(folder_);
    write_model_files(folder_);
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
    LlavaConfig config = demo_model_config();
    config.vision.hidden_size = 24;
    config.vision.intermediate_size = 32;
    config.vision.num_layers = 2;
    config.vision.num_heads = 2;
    config.decoder.hidden_size = 32;
    config.decoder.intermediate_size = 48;
    config.decoder.num_layers = 2;
    config.decoder.num_heads = config.decoder.num_kv_heads = 2;
    config.decoder.head_dim = 16;
    return config;
  }
  static PoolPlan plan() {
    return {
        .training = {120, 60}, .evaluation = {60, 40}, .difficulty = {.clutter = true, .distractor = true}, .seed = 2};
  }
  static ScenePool pool(const LlavaConfig& config, const Parameters& parameters, const fs::path& cache) {
    return ScenePool(plan(), config, *processor_, parameters, cache, {}, {});
  }

  static fs::path folder_;
  static std::unique_ptr<Tokenizer> tokenizer_;
  static std::unique_ptr<TurnTokens> tokens_;
  static std::unique_ptr<ImageProcessor> processor_;
};
fs::path PictureTasks::folder_;
std::unique_ptr<Tokenizer> PictureTasks::tokenizer_;
std::unique_ptr<TurnTokens> PictureTasks::tokens_;
std::unique_ptr<ImageProcessor> PictureTasks::processor_;

TEST_F(PictureTasks, ThePoolKnowsItsScenes) {
  const LlavaConfig config = tiny();
  const ScenePool scenes = pool(config, initial_parameters(config, 1), folder_ / "a.safetensors");
  size_t listed = 0;
  for (int64_t c = 0; c < synth::kNumClasses; ++c)
    for (const int64_t i : scenes.solos(false, Attribute::kColour, c)) {
      EXPECT_LT(i, 120);
      ASSERT_EQ(scenes.scene(i).objects.size(), 1U);
      EXPECT_EQ(static_cast<int64_t>(scenes.scene(i).objects[0].colour), c);
      EXPECT_FALSE(scenes.scene(i).object_patches.empty());
      ++listed;
    }
  EXPECT_EQ(listed, 120U);
  for (int64_t n = 1; n <= synth::kMaxObjects; ++n)
    for (const int64_t i : scenes.groups(true, n)) {
      EXPECT_GE(i, 120 + 60 + 60);  // behind training and the evaluation's solos
      EXPECT_EQ(static_cast<int64_t>(scenes.scene(i).objects.size()), n);
    }
}

TEST_F(PictureTasks, FeaturesAreTheTowersAndAreCachedForThatTowerOnly) {
  const torch::NoGradGuard no_gradients;
  const LlavaConfig config = tiny();
  const fs::path cache = folder_ / "b.safetensors";
  Parameters parameters = initial_parameters(config, 1);
  const ScenePool first = pool(config, parameters, cache);
  const auto written = fs::last_write_time(cache);
  const ScenePool again = pool(config, parameters, cache);
  EXPECT_EQ(fs::last_write_time(cache), written);
  test::expect_same(again.features(), first.features());
  // Means of an object's patches, from the features themselves.
  const PoolScene& scene = first.scene(7);
  at::Tensor sum = torch::zeros({config.vision.hidden_size});
  for (const uint8_t p : scene.object_patches) sum = sum + first.features()[7 * 64 + p].to(torch::kFloat);
  test::expect_close(first.object_means()[7], sum / static_cast<double>(scene.object_patches.size()), 2e-2);
  parameters.set("vision.embeddings.class_embedding", parameters.at("vision.embeddings.class_embedding") + 1);
  const ScenePool other = pool(config, parameters, cache);
  EXPECT_GT((other.features() - first.features()).abs().max().item<double>(), 1e-3);
}

TEST_F(PictureTasks, EvaluationTellsWhatIsAskedApart) {
  const LlavaConfig config = tiny();
  const Parameters parameters = initial_parameters(config, 1);
  const ScenePool scenes = pool(config, parameters, folder_ / "c.safetensors");
  const auto topics = [&](const PictureTaskOptions& options) {
    std::vector<std::string> names;
    for (const Score& s :
         picture_task(config, *tokens_, scenes, {.evaluation_batches = 6}, options, 4)->evaluate(parameters)) {
      names.push_back(s.topic);
      EXPECT_GT(s.count, 0);
    }
    return names;
  };
  EXPECT_EQ(topics({.tokens = PictureTokens::kMean, .echo = 0}),
            (std::vector<std::string>{"bind shape", "bind colour", "bind spot"}));
  EXPECT_EQ(topics({.tokens = PictureTokens::kSome, .some = 4, .questions = 1}),
            (std::vector<std::string>{"shape", "colour", "spot", "count", "colour of", "shape of", "position"}));
  EXPECT_EQ(topics({.tokens = PictureTokens::kAll, .sequences = 6, .turns = 6, .definitions = 1}),
            (std::vector<std::string>{"defined colour", "defined shape", "defined position"}));
  EXPECT_EQ(topics({.tokens = PictureTokens::kMean, .definitions = 1, .resolve = 1}),
            (std::vector<std::string>{"resolve"}));
}

// What a definition sequence asks and answers, checked against the scenes that its pictures are found to be.
TEST_F(PictureTasks, DefinitionsAreAnsweredByTheScenesTheyShow) {
  const torch::NoGradGuard no_gradients;
  const LlavaConfig config = tiny();
  const ScenePool scenes = pool(config, initial_parameters(config, 1), folder_ / "e.safetensors");
  const auto task = picture_task(
      config, *tokens_, scenes, {},
      {.tokens = PictureTokens::kAll, .sequences = 12, .turns = 8, .definitions = 1, .resolve = 0.3, .real = 0.3}, 4);
  const TrainingBatch batch = task->batch(7, /*is_evaluation=*/false);
  const auto ids = test::to_doubles(batch.ids), begin = test::to_doubles(batch.begin);
  const auto image_rows = test::to_doubles(batch.image_rows);
  // The scene of every picture, by the row where it begins.
  std::map<size_t, int64_t> scene_at;
  for (size_t i = 0; i < image_rows.size(); i += 64) {
    const at::Tensor same = (scenes.features() == batch.features[static_cast<int64_t>(i)]).all(1).nonzero();
    ASSERT_EQ(same.size(0), 1);
    scene_at[static_cast<size_t>(image_rows[i])] = same.item<int64_t>() / 64;
  }
  std::map<std::string, std::string> defined;  // in this sequence: made-up word -> name of its class
  std::set<std::string> kinds;
  for (const auto& [row, scene] : scene_at) {
    if (std::ranges::find(begin, static_cast<double>(row) - 3) != begin.end()) defined.clear();  // behind "<s>USER: "
    auto from = ids.begin() + static_cast<std::ptrdiff_t>(row) + 64;  // behind the picture, to the end of its turn
    const std::vector<int32_t> turn(from, std::find(from, ids.end(), static_cast<double>(tokens_->end())));
    const std::string text = tokenizer_->decode(turn);
    const std::string answer = text.substr(text.rfind(' ') + 1);
    const std::vector<synth::Object>& objects = scenes.scene(scene).objects;
    const auto asks = [&](const char* words) { return text.find(words) != std::string::npos; };
    if (asks("name the")) {
      defined[answer] = asks("shape") ? name_of(objects.at(0).shape) : name_of(objects.at(0).colour);
      continue;
    }
    const size_t mark = text.find('?'), space = text.rfind(' ', mark);
    const std::string word = text.substr(space + 1, mark - space - 1);
    const bool is_made_up = defined.contains(word);
    const std::string meant = is_made_up ? defined[word] : word;
    const auto object = std::ranges::find_if(
        objects, [&](const synth::Object& o) { return name_of(o.shape) == meant || name_of(o.colour) == meant; });
    ASSERT_NE(object, objects.end()) << text;
    const bool is_shape = std::ranges::find(synth::kShapeNames, meant) != synth::kShapeNames.end();
    std::string right(name_of(object->place()));
    if (asks("what shape")) right = is_shape ? meant : name_of(object->shape);
    if (asks("what colour")) right = is_shape ? name_of(object->colour) : meant;
    EXPECT_EQ(answer, right) << text;
    const std::string what = asks("where") ? "place" : asks("what shape") ? "shape" : "colour";
    kinds.insert(what + " of a " + (is_shape ? "shape" : "colour") + (is_made_up ? "'s word" : ""));
  }
  EXPECT_EQ(kinds, (std::set<std::string>{"colour of a colour's word", "colour of a shape", "colour of a shape's word",
                                          "place of a shape", "place of a shape's word", "shape of a colour",
                                          "shape of a colour's word", "shape of a shape's word"}));
}

TEST_F(PictureTasks, AShortRunLowersTheLossOfTheDecoder) {
  const LlavaConfig config = tiny();
  Parameters parameters = initial_parameters(config, 1);
  const ScenePool scenes = pool(config, parameters, folder_ / "d.safetensors");
  const auto task = picture_task(
      config, *tokens_, scenes, {.share_layers = 1, .evaluation_batches = 1},
      {.tokens = PictureTokens::kSome, .some = 4, .sequences = 4, .turns = 4, .questions = 0.5, .definitions = 0.2}, 4);
  const double before = task->loss(parameters, 1000).item<double>();
  const StagePlan short_plan{.name = "pictures",
                             .schedule = {.peak = 5e-3, .warm_up = 5, .steps = 60},
                             .optimizer = {},
                             .trained = {"decoder.", "lm_head.", "projector."},
                             .evaluate_every = 60,
                             .save_every = 60,
                             .stop = {}};
  run_stage(short_plan, *task, parameters, 4, folder_, {});
  EXPECT_LT(task->loss(parameters, 1000).item<double>(), 0.6 * before);
}

TEST_F(PictureTasks, AShortRunLowersTheLossOfTheTower) {
  const LlavaConfig config = tiny();
  Parameters parameters = initial_parameters(config, 1);
  add_tower_heads(config, TowerPictures::kFew, parameters, 1);
  const auto task = tower_task(config, *processor_, {.images = 8, .difficulties = {{}}, .evaluation_images = 16}, 4);
  const double before = task->loss(parameters, 1000).item<double>();
  const StagePlan short_plan{.name = "tower",
                             .schedule = {.peak = 3e-3, .warm_up = 5, .steps = 40},
                             .optimizer = {},
                             .trained = {"vision.", "heads."},
                             .evaluate_every = 40,
                             .save_every = 40,
                             .stop = {}};
  const StageResult end = run_stage(short_plan, *task, parameters, 4, folder_, {});
  EXPECT_LT(task->loss(parameters, 1000).item<double>(), 0.8 * before);
  ASSERT_EQ(end.scores.size(), 10U);
  EXPECT_EQ(end.scores[0].count, 8);        // shape: of the pictures with one object
  EXPECT_EQ(end.scores[8].count, 16 * 64);  // row: of every patch
}

TEST_F(PictureTasks, AWrittenModelIsWhatTheParametersSay) {
  const LlavaConfig config = demo_model_config();
  const Parameters parameters = initial_parameters(config, 9);
  const fs::path folder = folder_ / "model";
  write_model_files(folder);
  write_model_weights(folder, config, parameters);
  int64_t bytes = 0;
  for (const auto& file : fs::directory_iterator(folder)) bytes += static_cast<int64_t>(file.file_size());
  EXPECT_LT(bytes, 16'000'000);
  EXPECT_EQ(config.decoder.num_layers, 8);
  EXPECT_EQ(config.vision.num_patches(), 64);
}

}  // namespace
}  // namespace espalier
