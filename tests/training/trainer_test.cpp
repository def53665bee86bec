// SPDX-License-Identifier: Apache-2.0
// The loop on a task of a few numbers: it resumes bit by bit wherever it was stopped, keeps the last good state when a
// loss is no number, and says clearly what is wrong with a saved state.
#include "training/trainer.h"

#include <gtest/gtest.h>
#include <torch/types.h>

#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>

#include "espalier/error.h"
#include "tests/support/tensors.h"
#include "training/draw.h"
#include "training/saved_state.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;

// Least squares on rows drawn from the step; its loss breaks at a chosen step.
class LeastSquares : public Task {
 public:
  int64_t breaks_at = -1;

  at::Tensor loss(const Parameters& parameters, int64_t step) const override {
    const at::Tensor x = rows("training", step);
    const at::Tensor error = torch::matmul(x, parameters.at("model.weight")) + parameters.at("model.bias") - wanted(x);
    const at::Tensor loss = error.pow(2).mean();
    return step == breaks_at ? loss * std::numeric_limits<double>::quiet_NaN() : loss;
  }
  std::vector<Score> evaluate(const Parameters& parameters) const override {
    const torch::NoGradGuard no_gradients;
    const at::Tensor x = rows("evaluation", 0);
    const at::Tensor y = torch::matmul(x, parameters.at("model.weight")) + parameters.at("model.bias");
    const auto close = ((y - wanted(x)).abs() < 0.05).sum().item<int64_t>();
    return {{"close", close, x.size(0)}, {"never", 0, 1}};
  }

 private:
  static at::Tensor rows(const char* purpose, int64_t number) {
    return test::random_tensor({8, 3}, at::kFloat, static_cast<uint64_t>(Draw(1, purpose, number).below(1 << 30)));
  }
  static at::Tensor wanted(const at::Tensor& x) {
    return torch::matmul(x, torch::tensor({{1.0f}, {-2.0f}, {0.5f}})) + 0.25;
  }
};

class TrainerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() /
              ("espalier_trainer_" + std::string(::testing::UnitTest::GetInstance()->current_test_info()->name()));
    fs::remove_all(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  static StagePlan plan() {
    return {.name = "toy",
            .schedule = {.peak = 0.05, .warm_up = 5, .steps = 60},
            .optimizer = {.weight_decay = 0.01},
            .trained = {"model."},
            .evaluate_every = 10,
            .save_every = 4,
            .stop = {.accuracy = 2.0, .evaluations = 1}};  // never
  }
  static Parameters fresh() {
    Parameters parameters;
    parameters.add("model.weight", torch::zeros({3, 1}));
    parameters.add("model.bias", torch::zeros({1}));
    parameters.add("frozen.weight", torch::ones({2}));
    return parameters;
  }
  fs::path in(const std::string& name) const {
    fs::create_directories(folder_ / name);
    return folder_ / name;
  }
  // Runs until `steps` steps were begun, as a cancel or a kill would stop it.
  StageResult run(const fs::path& folder, Parameters& parameters, int64_t steps = 1 << 20,
                  const LeastSquares& task = {}, uint64_t seed = 7) const {
    int64_t left = steps;
    TrainingHooks hooks;
    hooks.should_cancel = [&] { return left-- <= 0; };
    return run_stage(plan(), task, parameters, seed, folder, hooks);
  }
  std::string message_of(const std::function<void()>& act) const {
    try {
      act();
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }

  fs::path folder_;
};

void expect_equal(const Parameters& a, const Parameters& b) {
  for (const Parameter& p : a.all()) test::expect_same(p.master.detach(), b.at(p.name).detach(), p.name);
}

TEST_F(TrainerTest, LowersTheLossAndLeavesFrozenOnesAlone) {
  Parameters parameters = fresh();
  const LeastSquares task;
  const double before = task.loss(parameters, 1000).item<double>();
  const StageResult end = run(in("a"), parameters);
  EXPECT_FALSE(end.cancelled);
  EXPECT_EQ(end.steps, 60);
  EXPECT_LT(task.loss(parameters, 1000).item<double>(), 0.1 * before);
  test::expect_same(parameters.at("frozen.weight"), torch::ones({2}));
}

TEST_F(TrainerTest, CancelledRunsGoOnBitByBit) {
  Parameters whole = fresh();
  run(in("whole"), whole);
  for (const int64_t first : {0, 1, 5, 10, 11, 37, 59}) {
    const fs::path folder = in("parts" + std::to_string(first));
    Parameters start = fresh();
    EXPECT_TRUE(run(folder, start, first).cancelled);
    Parameters rest = fresh();
    EXPECT_FALSE(run(folder, rest).cancelled);
    expect_equal(rest, whole);
  }
}

// A kill leaves what the last save wrote: steps behind it are run again, to the same bits.
TEST_F(TrainerTest, KilledRunsGoOnFromTheLastSave) {
  Parameters whole = fresh();
  run(in("whole"), whole);
  for (const int64_t killed_at : {5, 23, 46}) {
    const fs::path folder = in("killed" + std::to_string(killed_at));
    LeastSquares task;
    task.breaks_at = killed_at;
    Parameters start = fresh();
    EXPECT_THROW(run(folder, start, 1 << 20, task), Error);
    Parameters rest = fresh();
    run(folder, rest);
    expect_equal(rest, whole);
  }
}

// The log of a run that was killed, or that found the disk full, in the middle of a line.
TEST_F(TrainerTest, TheLogGoesOnBehindItsLastWholeLine) {
  Parameters parameters = fresh();
  const fs::path folder = in("log"), log = log_file(folder, "toy");
  std::ofstream(log) << "{\"event\": \"sta";
  run(folder, parameters);
  std::ifstream lines(log);
  int count = 0;
  for (std::string line; std::getline(lines, line); ++count) EXPECT_TRUE(nlohmann::json::accept(line)) << line;
  EXPECT_GT(count, 1);
}

TEST_F(TrainerTest, ALossThatIsNoNumberIsAnErrorThatNamesTheGoodState) {
  LeastSquares task;
  task.breaks_at = 9;
  Parameters parameters = fresh();
  const fs::path folder = in("nan");
  const std::string message = message_of([&] { run(folder, parameters, 1 << 20, task); });
  EXPECT_NE(message.find("stage toy, step 9: the loss is"), std::string::npos) << message;
  EXPECT_NE(message.find(state_file(folder, "toy").string()), std::string::npos) << message;
  EXPECT_EQ(read_counters(state_file(folder, "toy")).at("step"), "8");
}

TEST_F(TrainerTest, StopsByItsRule) {
  StagePlan stops = plan();
  stops.stop = {.accuracy = 0.9, .evaluations = 2, .except = {"never"}};
  stops.schedule.steps = 2000;
  Parameters parameters = fresh();
  const StageResult end = run_stage(stops, LeastSquares(), parameters, 7, in("stop"), {});
  EXPECT_TRUE(end.reached);
  EXPECT_LT(end.steps, 2000);
  EXPECT_TRUE(is_finished(folder_ / "stop", "toy"));
  EXPECT_GE(end.scores.at(0).accuracy(), 0.9);
  stops.stop.except.clear();
  stops.schedule.steps = end.steps + 20;
  parameters = fresh();
  EXPECT_FALSE(run_stage(stops, LeastSquares(), parameters, 7, in("waits"), {}).reached);
}

TEST_F(TrainerTest, AFinishedStageIsNotRunAgain) {
  Parameters parameters = fresh();
  run(in("a"), parameters);
  Parameters again = fresh();
  EXPECT_EQ(run(in("a"), again).steps, 60);
  expect_equal(again, parameters);
}

TEST_F(TrainerTest, AnotherSeedIsAnError) {
  Parameters parameters = fresh();
  run(in("a"), parameters, 8);
  const std::string message = message_of([&] { run(in("a"), parameters, 8, {}, /*seed=*/8); });
  EXPECT_NE(message.find("was trained with seed 7, not 8"), std::string::npos) << message;
}

TEST_F(TrainerTest, ABrokenStateIsAnError) {
  Parameters parameters = fresh();
  const fs::path folder = in("a"), file = state_file(folder, "toy");
  run(folder, parameters, 8);
  const auto bytes = fs::file_size(file);
  fs::resize_file(file, bytes - 5);
  EXPECT_NE(message_of([&] { run(folder, parameters); }).find(file.string()), std::string::npos);
  fs::resize_file(file, 3);
  EXPECT_NE(message_of([&] { run(folder, parameters); }).find(file.string()), std::string::npos);
}

TEST_F(TrainerTest, AStateOfAnotherModelIsAnError) {
  Parameters parameters = fresh();
  const fs::path folder = in("a");
  run(folder, parameters, 8);
  Parameters wider;
  wider.add("model.weight", torch::zeros({4, 1}));
  wider.add("model.bias", torch::zeros({1}));
  EXPECT_NE(message_of([&] { run(folder, wider); }).find("moment1.model.weight"), std::string::npos);
  Parameters more = fresh();
  more.add("model.more", torch::zeros({1}));
  EXPECT_NE(message_of([&] { run(folder, more); }).find("lacks moment1.model.more"), std::string::npos);
}

TEST_F(TrainerTest, WritesItsLogAsJsonLines) {
  Parameters parameters = fresh();
  run(in("a"), parameters);
  std::ifstream log(log_file(folder_ / "a", "toy"));
  std::string line, text;
  int lines = 0;
  while (std::getline(log, line)) {
    EXPECT_TRUE(line.starts_with('{') && line.ends_with('}')) << line;
    text += line;
    ++lines;
  }
  EXPECT_EQ(lines, 1 + 3 + 6);  // start, reports every 20 steps, evaluations every 10
  for (const char* key : {"\"loss\"", "\"learning_rate\"", "\"gradient_norm\"", "\"evaluation\"", "\"n\""})
    EXPECT_NE(text.find(key), std::string::npos) << key;
}

}  // namespace
}  // namespace espalier
