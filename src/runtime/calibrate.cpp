// SPDX-License-Identifier: Apache-2.0
#include "runtime/calibrate.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <utility>

#include "espalier/error.h"
#include "espalier/policies/table.h"
#include "runtime/encode.h"
#include "runtime/engine_impl.h"
#include "runtime/fit_costs.h"
#include "runtime/pace.h"

namespace espalier {

namespace {

using Draws = std::mt19937_64;

constexpr int64_t kMostTokens = 4096;  // of a prompt; times grow beyond as they do up to here
constexpr int kMostPictures = 12;
constexpr int64_t kParts = 36;  // amounts are so many parts of a pool

int64_t uniform(Draws& draws, int64_t low, int64_t high) {
  return low + static_cast<int64_t>(draws() % static_cast<uint64_t>(high - low + 1));
}
double unit(Draws& draws) {
  return static_cast<double>(draws() >> 11) * 0x1p-53;
}

// Of 64 to 1024 pixels a side, small ones as often as large ones.
std::shared_ptr<const Image> made_up_picture(Draws& draws) {
  const int width = static_cast<int>(64 * std::exp2(4 * unit(draws)));
  const int height = std::clamp(static_cast<int>(width * std::exp2(1.6 * unit(draws) - 0.8)), 64, 1024);
  Image image{width, height,
              std::vector<uint8_t>(size_t{3} * static_cast<size_t>(width) * static_cast<size_t>(height))};
  uint64_t value = draws();
  for (uint8_t& byte : image.rgb) {
    value = value * 6364136223846793005u + 1442695040888963407u;
    byte = static_cast<uint8_t>(value >> 56);
  }
  return std::make_shared<const Image>(std::move(image));
}

std::string made_up_words(Draws& draws, int64_t words) {
  std::string text;
  for (int64_t i = 0; i < words; ++i) {
    if (i > 0) text += ' ';
    for (int64_t letters = uniform(draws, 2, 7); letters > 0; --letters)
      text += static_cast<char>('a' + uniform(draws, 0, 25));
  }
  return text;
}

Chat made_up_chat(Draws& draws, int64_t pictures) {
  std::vector<Example> examples;
  const int64_t words = uniform(draws, 3, 40);
  for (int64_t i = 1; i < pictures; ++i)
    examples.push_back({{.image = made_up_picture(draws)}, made_up_words(draws, words), made_up_words(draws, 2)});
  return in_context_chat(examples, {.image = made_up_picture(draws)}, made_up_words(draws, words));
}

// As many pictures as go into the model's positions.
Chat fitting_chat(const Engine& engine, Draws& draws) {
  for (int64_t most = kMostPictures;; most = std::max<int64_t>(1, most / 2)) {
    Chat chat = made_up_chat(draws, uniform(draws, 1, most));
    const TokenCounts counts = engine.count_tokens(chat);
    if (counts.prompt_tokens < std::min(kMostTokens, counts.max_positions)) return chat;
    if (most == 1) throw Error("calibrate: a prompt of one picture passes the model's positions");
  }
}

struct Pass {
  std::string asked;  // the policy without amount
  CheckedPass seen = {};
  Work work = {};
  double encode_ms = 0, select_ms = 0, prefill_ms = 0;
};

Pass run_pass(const Engine& engine, const std::string& policy, Draws& draws, const CalibrateOptions& options) {
  Request request;
  request.prompt = fitting_chat(engine, draws);
  request.options.max_new_tokens = 1;
  request.options.greedy = true;
  Pass pass{.asked = policy};
  const LoadedModel& model = engine.impl().model;
  std::string refusal;
  for (int attempt = 0;; ++attempt) {  // amounts that a policy cannot keep are drawn anew
    if (attempt == 50) throw Error(refusal);
    request.policy = policy;
    if (policy != "none") {
      const std::string ratio = to_string(Fraction{uniform(draws, 1, kParts), kParts});
      request.policy += (policy.find(':') == std::string::npos ? ":keep_ratio=" : ",keep_ratio=") + ratio;
    }
    try {
      const PolicyPtr made = for_model(make_policy(request.policy), model.facts);
      const PackedPrompt packed = pack_prompt(model, request.prompt, 1, made.get());
      pass.work =
          work_of(packed, planned_rows(plan_steps(*made, model.facts, *packed.layout), made->row_breaks_compete(),
                                       *packed.layout, model.config.decoder.num_layers, Additions::kLeftOut));
      break;
    } catch (const Error& error) {
      refusal = error.what();
    }
  }
  Callbacks callbacks;
  callbacks.should_cancel = options.should_cancel;
  const Result result = engine.generate(request, callbacks);
  if (result.finish_reason == FinishReason::kCancelled) throw Cancelled();
  pass.encode_ms = result.stats.encode_ms;
  pass.select_ms = result.stats.select_ms;
  pass.prefill_ms = result.stats.prefill_ms;
  pass.seen = {.policy = request.policy,
               .pictures = std::ssize(result.stats.image_tokens),
               .prompt_tokens = result.stats.prompt_tokens,
               .predicted_ms = 0,
               .measured_ms = pass.encode_ms + pass.select_ms + pass.prefill_ms};
  return pass;
}

std::vector<std::string> policies_of(const Engine& engine, const CalibrateOptions& options) {
  std::vector<std::string> policies;
  for (const std::string& spec : options.policies) policies.push_back(without_amount(spec));
  if (!policies.empty()) return policies;
  for (const PolicyEntry& entry : policy_table()) {
    const bool takes_ratio = std::ranges::any_of(entry.options, [](const auto& o) { return o.name == "ttft"; });
    if (!takes_ratio || !entry.refusal(engine.impl().model.facts).empty()) continue;
    try {
      make_policy(std::string(entry.name) + ":keep_ratio=1");
    } catch (const Error&) {  // it has an option without a default, which whoever wants it measured names
      continue;
    }
    policies.emplace_back(entry.name);
  }
  return policies;
}

// What a process touches for the first time is not measured.
void warm_up(const Engine& engine, Draws& draws, const CalibrateOptions& options) {
  for (int i = 0; i < 4; ++i) run_pass(engine, "none", draws, options);
}

std::vector<Pass> run_all(const Engine& engine, const std::vector<std::string>& policies, Draws& draws,
                          const CalibrateOptions& options) {
  warm_up(engine, draws, options);
  std::vector<Pass> passes;
  for (const std::string& policy : policies) {
    if (options.on_progress) options.on_progress("measure", std::ssize(passes), std::ssize(policies));
    passes.push_back(run_pass(engine, policy, draws, options));
  }
  return passes;
}

template <typename Of>
std::vector<double> values_of(std::span<const CostTerm<Of>> terms, const Of& of) {
  std::vector<double> values;
  for (const CostTerm<Of>& term : terms) values.push_back(term.value(of));
  return values;
}

StageCosts fit_stage(const std::vector<Pass>& passes, std::span<const CostTerm<Work>> terms, double Pass::*stage) {
  std::vector<TimedPass> timed;
  for (const Pass& pass : passes) timed.push_back({values_of(terms, pass.work), pass.*stage, pass.*stage});
  return {fit_costs(std::move(timed))};
}

// An error counts in proportion to the whole pass: most selections are a small part of it.
StageCosts fit_select(const std::vector<Pass>& passes, const std::string& policy) {
  std::vector<TimedPass> timed;
  for (const Pass& pass : passes) {
    if (pass.asked != policy) continue;
    TimedPass& of = timed.emplace_back(
        TimedPass{std::vector<double>(select_terms().size(), 0.0), pass.select_ms, pass.seen.measured_ms});
    for (const PlannedSelection& selection : pass.work.rows.selections) {
      const std::vector<double> values = values_of(select_terms(), selection);
      for (size_t i = 0; i < values.size(); ++i) of.terms[i] += values[i];
    }
  }
  return {fit_costs(std::move(timed))};
}

double median_error(const std::vector<Pass>& passes, const CostModel& costs) {
  std::vector<double> errors;
  for (const Pass& pass : passes) errors.push_back(std::abs(costs.milliseconds(pass.work) / pass.seen.measured_ms - 1));
  std::ranges::sort(errors);
  return errors[errors.size() / 2];
}

}  // namespace

MeasuredCosts measure_costs(const Engine& engine, const CalibrateOptions& options) {
  Draws draws(options.seed);
  const std::vector<std::string> policies = policies_of(engine, options);
  std::vector<std::string> order(static_cast<size_t>(4 * options.passes), "none");
  for (const std::string& policy : policies) order.insert(order.end(), static_cast<size_t>(options.passes), policy);
  std::ranges::shuffle(order, draws);  // so that a drift of the machine hits all alike
  const std::vector<Pass> passes = run_all(engine, order, draws, options);
  const KnownCosts& setup = engine.impl().model.costs;
  MeasuredCosts measured;
  measured.setup = {.dtype = setup.dtype, .device = setup.device, .threads = at::get_num_threads()};
  measured.passes = std::ssize(passes);
  measured.model.encode = fit_stage(passes, encode_terms(), &Pass::encode_ms);
  measured.model.prefill = fit_stage(passes, prefill_terms(), &Pass::prefill_ms);
  for (const std::string& policy : policies) measured.model.select[policy] = fit_select(passes, policy);
  measured.median_error = median_error(passes, measured.model);
  return measured;
}

std::vector<CheckedPass> check_costs(const Engine& engine, const CostModel& costs, int64_t count,
                                     const CalibrateOptions& options) {
  Draws draws(options.seed);
  std::vector<std::string> policies = {"none"};
  for (const std::string& policy : policies_of(engine, options)) policies.push_back(policy);
  std::vector<std::string> order;
  for (int64_t i = 0; i < count; ++i)
    order.push_back(policies[static_cast<size_t>(uniform(draws, 0, std::ssize(policies) - 1))]);
  std::vector<CheckedPass> checked;
  Pace pace;
  for (Pass& pass : run_all(engine, order, draws, options)) {
    const double by_costs_ms = costs.milliseconds(pass.work);
    pass.seen.predicted_ms = pace.now() * by_costs_ms;
    pace.saw(by_costs_ms, pass.seen.measured_ms);
    checked.push_back(std::move(pass.seen));
  }
  return checked;
}

}  // namespace espalier
