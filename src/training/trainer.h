// SPDX-License-Identifier: Apache-2.0
// The loop of one training stage: steps, evaluation, stop rule, log and saved state. What is learned is a Task; which
// stages there are is the curriculum's.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "training/adamw.h"
#include "training/parameters.h"
#include "training/saved_state.h"
#include "training/schedule.h"

namespace espalier {

struct Score {  // of one evaluation, one topic
  std::string topic;
  int64_t correct = 0;
  int64_t count = 0;

  double accuracy() const { return count > 0 ? static_cast<double>(correct) / static_cast<double>(count) : 0.0; }
};

using Measures = std::vector<std::pair<std::string, double>>;  // numbers for the log, by name

struct StepLoss {
  at::Tensor total;
  Measures parts = {};  // the same names at every step
};

struct Evaluation {
  std::vector<Score> scores;
  Measures measures = {};
};

class Task {
 public:
  virtual ~Task() = default;
  // The loss of training step `step`, with its graph: a function of its arguments alone.
  virtual at::Tensor loss(const Parameters& parameters, int64_t step) const = 0;
  // On items that no step trains on, without a graph. Always the same items.
  virtual std::vector<Score> evaluate(const Parameters& parameters) const = 0;
  // What the loop calls: tasks that have more to tell override these.
  virtual StepLoss loss_in_parts(const Parameters& parameters, int64_t step) const { return {loss(parameters, step)}; }
  virtual Evaluation evaluate_after(const Parameters& parameters, int64_t /*step*/) const {
    return {evaluate(parameters)};
  }
};

struct StopRule {
  double accuracy = 0.99;                // of every topic alone: they click one after another
  int evaluations = 2;                   // in a row
  std::vector<std::string> except = {};  // topics that it does not wait for: learned in a later stage
};

struct StagePlan {
  std::string name;
  RateSchedule schedule;  // its `steps` are also the most that the stage runs
  AdamWOptions optimizer;
  std::vector<std::string> trained;                               // prefixes of the parameters' names
  std::vector<std::string> still = {};                            // prefixes among them that are not trained
  std::vector<std::pair<std::string, double>> rate_factors = {};  // by prefix; 1 for other names
  Counters identity = {};        // what a saved state must have been trained with, beside the seed
  int64_t evaluate_every = 100;  // steps; the state is saved at each evaluation
  int64_t save_every = 100;
  int64_t pause_at = 0;  // steps after which the run ends as if cancelled, to go on another time; 0: never
  StopRule stop;
};

struct StageProgress {
  const StagePlan& plan;
  int64_t step = 0;  // done
  double loss = 0;   // mean since the last report
  Measures parts = {};
};

struct TrainingHooks {
  std::function<bool()> should_cancel;
  std::function<void(const StageProgress&)> on_step;
  std::function<void(const StagePlan&, int64_t step, const Evaluation&)> on_evaluation;
};

struct StageResult {
  bool cancelled = false;  // or paused: the state is saved; the same call goes on
  bool reached = false;    // its stop rule, before the steps ran out
  int64_t steps = 0;
  std::vector<Score> scores;  // of the last evaluation
};

// Where a stage keeps its state and its log.
std::filesystem::path state_file(const std::filesystem::path& folder, const std::string& stage);
std::filesystem::path log_file(const std::filesystem::path& folder, const std::string& stage);
bool is_finished(const std::filesystem::path& folder, const std::string& stage);

// Runs the stage in `folder` from `parameters`, or from its saved state when there is one (of the same seed, or Error).
// A loss or gradient that is not finite throws Error; the last saved state stays.
StageResult run_stage(const StagePlan& plan, const Task& task, Parameters& parameters, uint64_t seed,
                      const std::filesystem::path& folder, const TrainingHooks& hooks);

}  // namespace espalier
