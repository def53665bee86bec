// SPDX-License-Identifier: Apache-2.0
#include "training/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/line_file.h"
#include "espalier/error.h"
#include "training/saved_state.h"

namespace espalier {

namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

constexpr int64_t kReportEvery = 20;  // steps

int64_t counter(const Counters& counters, const std::string& key) {
  const auto found = counters.find(key);
  return found == counters.end() ? 0 : std::stoll(found->second);
}

class StageRun {
 public:
  StageRun(const StagePlan& plan, const Task& task, Parameters& parameters, uint64_t seed,
           const std::filesystem::path& folder, const TrainingHooks& hooks)
      : plan_(plan),
        task_(task),
        parameters_(parameters),
        seed_(seed),
        file_(state_file(folder, plan.name)),
        hooks_(hooks),
        trained_(parameters.train_only(plan.trained, plan.still)),
        optimizer_(masters(), plan.optimizer, rate_factors()),
        log_(log_file(folder, plan.name)) {
    for (const Parameter& p : trained_) names_.push_back(p.name);
  }

  StageResult run() {
    resume();
    while (!finished_) {
      const bool pauses = plan_.pause_at > 0 && step_ >= plan_.pause_at;
      if (pauses || (hooks_.should_cancel && hooks_.should_cancel())) {
        save();
        return result(/*cancelled=*/true);
      }
      train_one();
      const bool is_last = step_ >= plan_.schedule.steps;
      if (is_last || step_ % plan_.evaluate_every == 0) evaluate();
      finished_ = is_last || good_evaluations_ >= plan_.stop.evaluations;
      if (finished_ || step_ % plan_.evaluate_every == 0 || step_ % plan_.save_every == 0) save();
    }
    return result(/*cancelled=*/false);
  }

 private:
  std::vector<at::Tensor> masters() const {
    std::vector<at::Tensor> tensors;
    for (const Parameter& p : trained_) tensors.push_back(p.master);
    return tensors;
  }

  std::vector<double> rate_factors() const {
    std::vector<double> factors;
    for (const Parameter& p : trained_) {
      const auto found =
          std::ranges::find_if(plan_.rate_factors, [&](const auto& f) { return p.name.starts_with(f.first); });
      factors.push_back(found == plan_.rate_factors.end() ? 1.0 : found->second);
    }
    return factors;
  }

  void check_identity(const Counters& counters) const {
    Counters wanted = plan_.identity;
    wanted["seed"] = std::to_string(seed_);
    for (const auto& [key, value] : wanted) {
      const auto found = counters.find(key);
      const std::string stored = found == counters.end() ? "none" : found->second;
      if (stored != value)
        throw Error(file_.string() + ": was trained with " + key + " " + stored + ", not " + value +
                    "; choose another folder or remove it");
    }
  }

  void log(const Json& line) { log_.add(line.dump() + "\n"); }

  void resume() {
    if (!std::filesystem::exists(file_)) {
      log({{"event", "start"}, {"stage", plan_.name}, {"seed", seed_}});
      return;
    }
    check_identity(read_counters(file_));
    const Counters counters = load_state(file_, parameters_, optimizer_, names_);
    step_ = counter(counters, "step");
    good_evaluations_ = static_cast<int>(counter(counters, "good_evaluations"));
    finished_ = counter(counters, "finished") != 0;
    log({{"event", "resume"}, {"stage", plan_.name}, {"step", step_}});
  }

  void save() const {
    Counters counters = plan_.identity;
    counters.merge(Counters{{"stage", plan_.name},
                            {"seed", std::to_string(seed_)},
                            {"step", std::to_string(step_)},
                            {"good_evaluations", std::to_string(good_evaluations_)},
                            {"finished", finished_ ? "1" : "0"}});
    save_state(file_, parameters_, optimizer_, names_, counters);
  }

  void train_one() {
    const Clock::time_point start = Clock::now();
    const double rate = plan_.schedule.rate(step_);
    const auto [loss, parts] = task_.loss_in_parts(parameters_, step_);
    const double value = loss.item<double>();
    if (!std::isfinite(value)) fail("loss", value);
    loss.backward();
    const double norm = optimizer_.step(rate);
    if (!std::isfinite(norm)) fail("gradient", norm);
    ++step_;
    loss_sum_ += value;
    ++summed_steps_;
    part_sums_.resize(parts.size(), {"", 0.0});
    for (size_t i = 0; i < parts.size(); ++i) part_sums_[i] = {parts[i].first, part_sums_[i].second + parts[i].second};
    seconds_ += std::chrono::duration<double>(Clock::now() - start).count();
    if (step_ % kReportEvery == 0) report(rate, norm);
  }

  [[noreturn]] void fail(const char* what, double value) const {
    const bool saved = std::filesystem::exists(file_);
    throw Error("stage " + plan_.name + ", step " + std::to_string(step_) + ": the " + what + " is " +
                std::to_string(value) +
                (saved ? "; the last good state is in " + file_.string() : "; nothing was saved yet"));
  }

  void report(double rate, double norm) {
    const auto steps = static_cast<double>(summed_steps_);  // fewer behind a resume
    const double mean = loss_sum_ / steps;
    Json line = {{"step", step_}, {"loss", mean}};
    for (auto& [name, sum] : part_sums_) line[name] = sum /= steps;
    line.update({{"learning_rate", rate}, {"gradient_norm", norm}, {"ms_per_step", 1000 * seconds_ / steps}});
    log(line);
    if (hooks_.on_step) hooks_.on_step({plan_, step_, mean, part_sums_});
    loss_sum_ = seconds_ = 0;
    summed_steps_ = 0;
    part_sums_.clear();
  }

  void evaluate() {
    const Clock::time_point start = Clock::now();
    const Evaluation evaluation = task_.evaluate_after(parameters_, step_);
    scores_ = evaluation.scores;
    Json accuracy = Json::object();
    for (const Score& s : scores_) accuracy[s.topic] = {{"accuracy", s.accuracy()}, {"n", s.count}};
    Json line = {{"step", step_}, {"evaluation", accuracy}};
    for (const auto& [name, value] : evaluation.measures) line[name] = value;
    line["ms"] = 1000 * std::chrono::duration<double>(Clock::now() - start).count();
    log(line);
    const bool good = std::ranges::all_of(scores_, [&](const Score& s) {
      return s.accuracy() >= plan_.stop.accuracy ||
             std::ranges::find(plan_.stop.except, s.topic) != plan_.stop.except.end();
    });
    good_evaluations_ = good ? good_evaluations_ + 1 : 0;
    if (hooks_.on_evaluation) hooks_.on_evaluation(plan_, step_, evaluation);
  }

  StageResult result(bool cancelled) const {
    return {cancelled, good_evaluations_ >= plan_.stop.evaluations, step_, scores_};
  }

  const StagePlan& plan_;
  const Task& task_;
  Parameters& parameters_;
  uint64_t seed_;
  std::filesystem::path file_;
  const TrainingHooks& hooks_;
  std::vector<Parameter> trained_;
  std::vector<std::string> names_;
  AdamW optimizer_;
  LineFile log_;
  int64_t step_ = 0;
  int good_evaluations_ = 0;
  bool finished_ = false;
  double loss_sum_ = 0, seconds_ = 0;  // since the last report
  int64_t summed_steps_ = 0;           // likewise
  Measures part_sums_;
  std::vector<Score> scores_;
};

}  // namespace

std::filesystem::path state_file(const std::filesystem::path& folder, const std::string& stage) {
  return folder / (stage + ".safetensors");
}

std::filesystem::path log_file(const std::filesystem::path& folder, const std::string& stage) {
  return folder / (stage + ".log.jsonl");
}

bool is_finished(const std::filesystem::path& folder, const std::string& stage) {
  const std::filesystem::path file = state_file(folder, stage);
  return std::filesystem::exists(file) && counter(read_counters(file), "finished") != 0;
}

StageResult run_stage(const StagePlan& plan, const Task& task, Parameters& parameters, uint64_t seed,
                      const std::filesystem::path& folder, const TrainingHooks& hooks) {
  return StageRun(plan, task, parameters, seed, folder, hooks).run();
}

}  // namespace espalier
