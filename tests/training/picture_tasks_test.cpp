// SPDX-License-Identifier: Apache-2.0
// Tasks on pictures with a tower of toy size: the pool's index and its cached features, what evaluation covers, and
// that short runs lower the losses.
#include <gtest/gtest.h>
#include <torch/types.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <memory>

#include "io/image_processor.h"
#include "model/vision_tower.h"
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
  static ModelConfig tiny() {
    ModelConfig config = demo_model_config();
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
  static ScenePool pool(const ModelConfig& config, const Parameters& parameters, const fs::path& cache) {
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
  const ModelConfig config = tiny();
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
  const ModelConfig config = tiny();
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
  const ModelConfig config = tiny();
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
}

TEST_F(PictureTasks, AShortRunLowersTheLossOfTheDecoder) {
  const ModelConfig config = tiny();
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
  const ModelConfig config = tiny();
  Parameters parameters = initial_parameters(config, 1);
  add_tower_heads(config, parameters, 1);
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
  const ModelConfig config = demo_model_config();
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
