// SPDX-License-Identifier: Apache-2.0
// train_atp end to end on a tiny random checkpoint: it reaches its target, goes on bit by bit wherever it was stopped
// or killed, writes modules that the policy reads, and says clearly what is wrong.
#include <gtest/gtest.h>
#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>

#include "base/safetensors.h"
#include "espalier/engine.h"
#include "espalier/error.h"
#include "espalier/training.h"
#include "recording/policy_files.h"
#include "tests/support/folders.h"
#include "training/atp_examples.h"
#include "training/draw.h"
#include "training/saved_state.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;

const std::string kPicture = (test::source_folder() / "examples/demo/shape/0.png").string();

std::string bytes_of(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

class TrainAtpTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() /
              ("espalier_train_atp_" + std::string(::testing::UnitTest::GetInstance()->current_test_info()->name()));
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  // The checkpoint of tests/golden: 16 tokens a picture, 8 layers, random weights.
  TrainAtpOptions options(const std::string& out) const {
    TrainAtpOptions o;
    o.model = test::golden_folder() / "llava15";
    o.out = folder_ / out;
    o.suites = {"single", "detail"};
    o.difficulty = "plain";
    o.settings.strides = {2, 4};
    o.hidden_size = 8;
    o.target_ratio = 0.5;
    o.steps = 12;
    o.batch = 2;
    o.learning_rate = 0.1;
    o.warm_up = 2;
    o.evaluate_every = 6;
    o.evaluation_items = 3;
    o.save_every = 4;
    o.seed = 5;
    o.dtype = ComputeDtype::kFloat32;
    return o;
  }
  std::string message_of(const std::function<void()>& act) const {
    try {
      act();
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }
  void expect_error(const TrainAtpOptions& o, const std::string& part) const {
    const std::string message = message_of([&] { train_atp(o, {}); });
    EXPECT_NE(message.find(part), std::string::npos) << "\"" << message << "\" lacks \"" << part << "\"";
  }
  fs::path write(const std::string& name, const std::string& text) const {
    std::ofstream(folder_ / name) << text;
    return folder_ / name;
  }

  fs::path folder_;
};

TEST_F(TrainAtpTest, ReachesItsTargetAndLowersTheLoss) {
  TrainAtpOptions o = options("a");
  o.steps = 100;
  o.batch = 4;
  o.learning_rate = 0.03;
  o.evaluate_every = 100;
  o.evaluation_items = 12;
  o.final_temperature = 200;
  o.settings.strategy = AtpStrategy::kRedundant;  // the other score has three levels: no share between them
  o.target_weight = 1;                            // a random model's answers are no better with tokens than without
  std::vector<double> losses;
  TrainingCallbacks callbacks;
  callbacks.on_update = [&](const TrainingUpdate& update) {
    if (update.accuracy.empty()) losses.push_back(update.loss);
  };
  const TrainAtpResult result = train_atp(o, callbacks);
  EXPECT_FALSE(result.cancelled);
  ASSERT_EQ(losses.size(), 5U);
  EXPECT_LT(losses.back(), losses.front() - 1);
  EXPECT_NEAR(result.soft_tokens, 8, 0.8);  // 16 tokens a picture
  EXPECT_NEAR(result.hard_tokens, 8, 0.8);
  // The counts are those of a run with the file that was written.
  const AtpWeights weights = PolicyFilesOnDisk().atp_weights(result.weights.string());
  EXPECT_EQ(weights.settings.layers, (std::vector<int>{1, 4, 6}));
  EXPECT_EQ(weights.settings.grid, (GridSize{4, 4}));
  const Engine engine = Engine::load(o.model, {.dtype = ComputeDtype::kFloat32});
  const auto examples = synthetic_examples(o.suites, {}, o.seed);
  double tokens = 0;
  for (int64_t i = 0; i < o.evaluation_items; ++i) {
    Request request;
    Chat chat = examples->draw(i, /*is_evaluation=*/true);
    chat.messages.pop_back();
    request.prompt = chat;
    request.policy = "atp:weights=" + result.weights.string();
    request.options.max_new_tokens = 0;
    for (const auto& layer : engine.generate(request).stats.image_tokens_per_layer)
      tokens += static_cast<double>(layer.at(0)) / 8 / static_cast<double>(o.evaluation_items);
  }
  EXPECT_NEAR(tokens, result.hard_tokens, 1e-9);
}

TEST_F(TrainAtpTest, WritesItsLogAndPlot) {
  train_atp(options("a"), {});
  std::ifstream log(folder_ / "a" / "train-atp.log.jsonl");
  std::string line;
  int evaluations = 0;
  while (std::getline(log, line)) {
    const auto json = nlohmann::json::parse(line);
    if (!json.contains("evaluation")) continue;
    ++evaluations;
    for (const char* key : {"soft_tokens", "hard_tokens", "loss_answers", "theta_r_0", "theta_s_2", "temperature"})
      EXPECT_TRUE(json.contains(key)) << key;
  }
  EXPECT_EQ(evaluations, 2);
  const std::string svg = bytes_of(folder_ / "a" / "train-atp.svg");
  EXPECT_TRUE(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
  EXPECT_NE(svg.find("tokens removed"), std::string::npos);
}

TEST_F(TrainAtpTest, PausedAndKilledRunsGoOnBitByBit) {
  const TrainAtpOptions whole = options("whole");
  train_atp(whole, {});
  const std::string expected = bytes_of(whole.out / "atp.safetensors");
  Draw draw(static_cast<uint64_t>(std::time(nullptr)), "kill", 0);
  for (int trial = 0; trial < 3; ++trial) {
    const TrainAtpOptions parts = options("parts" + std::to_string(trial));
    const int64_t paused_at = draw.below(12), killed_at = draw.below(12);
    SCOPED_TRACE("paused at " + std::to_string(paused_at) + ", killed after " + std::to_string(killed_at));
    int64_t left = paused_at;
    TrainingCallbacks pauses;
    pauses.should_cancel = [&] { return left-- <= 0; };
    EXPECT_TRUE(train_atp(parts, pauses).cancelled);
    left = killed_at;
    struct Kill {};
    TrainingCallbacks kills;  // what is behind the last save is lost
    kills.should_cancel = [&]() -> bool { return left-- <= 0 ? throw Kill() : false; };
    try {
      train_atp(parts, kills);
    } catch (const Kill&) {
    }
    EXPECT_FALSE(train_atp(parts, {}).cancelled);
    EXPECT_EQ(bytes_of(parts.out / "atp.safetensors"), expected);
  }
}

TEST_F(TrainAtpTest, TrainsTheDecoderTooAndWritesTheModel) {
  TrainAtpOptions o = options("a");
  o.train_decoder = true;
  o.decoder_learning_rate = 1e-3;
  train_atp(o, {});
  const Engine engine = Engine::load(o.out / "model");
  const SafetensorsFile before = SafetensorsFile::open(o.model / "model.safetensors"),
                        after = SafetensorsFile::open(o.out / "model" / "model.safetensors");
  ASSERT_EQ(before.tensors().size(), after.tensors().size());
  for (const auto& [name, view] : before.tensors()) {
    const TensorView& now = after.tensors().at(name);
    EXPECT_EQ(now.dtype, view.dtype);
    const bool is_same = std::ranges::equal(now.bytes, view.bytes);
    const auto has = [&](const char* part) { return name.find(part) != std::string::npos; };
    if (has("vision") || has("projector")) {
      EXPECT_TRUE(is_same) << name;
    }
    if (has("q_proj") && !has("vision")) {
      EXPECT_FALSE(is_same) << name;
    }
  }
}

// The baseline that cannot adapt: the same thresholds whatever the picture.
TEST_F(TrainAtpTest, AConstantHeadReadsNothing) {
  TrainAtpOptions o = options("a");
  o.head = AtpHead::kConstant;
  const TrainAtpResult result = train_atp(o, {});
  for (const AtpModule& m : PolicyFilesOnDisk().atp_weights(result.weights.string()).modules) {
    EXPECT_EQ(m.redundancy_weight.abs().sum().item<float>(), 0);
    EXPECT_EQ(m.mix_weight.abs().sum().item<float>(), 0);
    EXPECT_NE(m.redundancy_bias.item<float>(), std::log(0.047F / 0.953F));  // learned
  }
}

TEST_F(TrainAtpTest, AblationsHoldAtInferenceThroughTheFile) {
  TrainAtpOptions o = options("a");
  o.steps = 1;
  o.settings.strategy = AtpStrategy::kRedundant;
  o.settings.scores = AtpScores::kCross;
  o.settings.head_input = AtpHeadInput::kMean;
  o.settings.norm = AtpNorm::kRank;
  const AtpSettings read = PolicyFilesOnDisk().atp_weights(train_atp(o, {}).weights.string()).settings;
  EXPECT_EQ(read.strategy, AtpStrategy::kRedundant);
  EXPECT_EQ(read.scores, AtpScores::kCross);
  EXPECT_EQ(read.head_input, AtpHeadInput::kMean);
  EXPECT_EQ(read.norm, AtpNorm::kRank);
}

TEST_F(TrainAtpTest, LearnsFromConversationsInAFile) {
  TrainAtpOptions o = options("a");
  std::string list = "[";
  for (int i = 0; i < 4; ++i)
    list +=
        std::string(i ? "," : "") + R"({"id": "x", "image": ")" + kPicture +
        R"(", "conversations": [{"from": "human", "value": "<image>\nwhat shape?"}, {"from": "gpt", "value": "star"},
                {"from": "human", "value": "what colour?"}, {"from": "gpt", "value": "dark red"}]})";
  list += R"(,{"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "yes"}]}])";
  o.data = write("data.json", list);
  o.steps = 4;
  const TrainAtpResult result = train_atp(o, {});
  EXPECT_EQ(result.steps, 4);
  EXPECT_TRUE(fs::exists(result.weights));
}

TEST_F(TrainAtpTest, SaysWhatIsWrongWithTheData) {
  TrainAtpOptions o = options("a");
  o.data = folder_ / "nothing.json";
  expect_error(o, "nothing.json");
  o.data = write("empty.json", "[]");
  expect_error(o, "there is no conversation in it");
  o.data =
      write("one.json", R"([{"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "a"}]}])");
  expect_error(o, "at least two conversations with pictures are needed");
  const std::string asked =
      R"({"image": ")" + kPicture + R"(", "conversations": [{"from": "human", "value": "<image>"}]})";
  o.data = write("asked.json", "[" + asked + "," + asked + "]");
  expect_error(o, "has an answer with a picture before it");
  const std::string lost = R"({"image": "lost.png", "conversations": [{"from": "human", "value": "<image>"}]})";
  o.data = write("lost.json", "[" + lost + "," + lost + "]");
  expect_error(o, "lost.png");
  o.data = write("broken.json", R"([{"conversations": [{"from": "human"}]}])");
  expect_error(o, "field \"conversations.0.value\"");
}

TEST_F(TrainAtpTest, SaysWhatIsWrongWithTheOptions) {
  TrainAtpOptions o = options("a");
  o.target_ratio = 1.5;
  expect_error(o, "target ratio");
  o = options("a");
  o.settings.layers = {2, 9};
  expect_error(o, "layer");
  o = options("a");
  o.initial_theta_r = {0.1, 0.2};
  expect_error(o, "2 initial thresholds for 3 modules");
  o.initial_theta_r = {1.0};
  expect_error(o, "initial thresholds must be above 0 and below 1");
  o = options("a");
  o.suites = {"flying"};
  expect_error(o, "flying");
  o = options("a");
  o.model = folder_ / "no_model";
  expect_error(o, "no such model folder");
  o = options("a");
  o.dtype = ComputeDtype::kFloat16;
  expect_error(o, "float32 or bfloat16");
  o = options("a");
  o.settings.grid = {3, 3};
  expect_error(o, "its modules are for crops of 3 x 3 tokens");
}

TEST_F(TrainAtpTest, SaysWhatIsWrongWithTheState) {
  TrainAtpOptions o = options("a");
  train_atp(o, {});
  const fs::path state = o.out / "train-atp.safetensors";
  const std::string good = bytes_of(state);
  TrainAtpOptions other = o;
  other.target_ratio = 0.25;
  expect_error(other, "was trained with target_ratio 0.5, not 0.25");
  other = o;
  other.seed = 6;
  expect_error(other, "was trained with seed 5, not 6");
  other = o;
  other.settings.strides = {2};
  expect_error(other, "was trained with strides 2:4, not 2");
  std::ofstream(state, std::ios::binary) << good.substr(0, good.size() / 2);
  expect_error(o, state.string());
  std::ofstream(state, std::ios::binary) << good;
  EXPECT_EQ(train_atp(o, {}).steps, 12);
}

// A learning rate that blows up: the state of the last save stays, and the message names it.
TEST_F(TrainAtpTest, ALossThatIsNoNumberKeepsTheLastGoodState) {
  TrainAtpOptions o = options("a");
  o.train_decoder = true;
  o.decoder_learning_rate = 1e30;
  o.warm_up = 0;
  o.max_gradient_norm = 0;
  o.save_every = 1;
  const std::string message = message_of([&] { train_atp(o, {}); });
  EXPECT_NE(message.find("the last good state is in"), std::string::npos) << message;
  const Counters counters = read_counters(o.out / "train-atp.safetensors");
  EXPECT_GE(std::stoll(counters.at("step")), 1);
}

}  // namespace
}  // namespace espalier
