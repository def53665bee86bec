// SPDX-License-Identifier: Apache-2.0
#include "recording/fit.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <utility>

#include "base/json_schema.h"
#include "espalier/error.h"
#include "pruning/policy_spec.h"
#include "pruning/prompt_text.h"
#include "runtime/generate.h"

namespace espalier {

namespace {

Result run(const LoadedModel& model, const Calibration& calibration, size_t i, PolicyPtr policy,
           RunWatcher* watcher = nullptr) {
  Request request;
  request.prompt = calibration.prompt(i);
  request.custom = std::move(policy);
  request.options.max_new_tokens = 0;
  Callbacks callbacks;
  callbacks.should_cancel = calibration.callbacks.should_cancel;
  Result result = generate(model, request, callbacks, {.watcher = watcher});
  if (result.finish_reason == FinishReason::kCancelled) throw Cancelled();
  return result;
}

void show(const Calibration& calibration, int64_t done, int64_t total) {
  if (calibration.callbacks.on_progress) calibration.callbacks.on_progress("fit", done, total);
}

// ---- fitprune ----

struct Masses {
  std::vector<double> cross, self;  // by layer, of the unpruned run
};

// Inside every layer: measures what image tokens receive, and deletes what a tolerance lets go.
class FitprunePass final : public PruningPolicy {
 public:
  // Without a tolerance it deletes nothing and fills `masses`; else it fills `counts`.
  FitprunePass(Masses& masses, std::vector<int64_t>& counts, std::optional<double> alpha)
      : masses_(masses), counts_(counts), alpha_(alpha) {}

  std::string spec() const override { return "fitprune"; }
  bool row_breaks_compete() const override { return true; }

  std::vector<Step> steps(const ModelFacts& model, const PromptLayout& prompt) const override {
    if (text_behind_last_image(prompt).empty())
      throw Error("fitprune: no text stands after the last image of a prompt to rate its tokens");
    std::vector<Step> steps;
    for (int layer = 0; layer < model.num_layers; ++layer)
      steps.push_back(
          {.at = {Site::kAfterAttention, layer},
           .needs = [layer](const TokenLayout& layout) { return probe(layer, layout); },
           .decide = [this, layer](const TokenLayout& layout,
                                   std::span<const at::Tensor> signals) { return decide(layer, layout, signals); }});
    return steps;
  }

 private:
  static std::vector<Signal> probe(int layer, const TokenLayout& layout) {
    if (layout.num_image_tokens() == 0) return {};
    AttentionProbe probe{.layer = layer, .rows = AttentionProbe::Rows::kGiven, .heads = AttentionProbe::Heads::kMax};
    probe.groups.push_back({.rows = text_tokens_at(layout, text_behind_last_image(*layout.prompt))});
    probe.groups.push_back({.rows = layout.image_tokens});
    return {probe};
  }

  Verdict decide(int of_layer, const TokenLayout& layout, std::span<const at::Tensor> signals) const {
    const int64_t m = layout.num_image_tokens();
    const at::Tensor all = at::arange(m, layout.image_tokens.options());
    if (m == 0) {
      counts_.push_back(0);
      return {.kept = all};
    }
    const at::Tensor received = signals[0].to(at::kDouble).cpu().contiguous();
    const std::span<const double> cross(received.const_data_ptr<double>(), static_cast<size_t>(m));
    const std::span<const double> self(cross.data() + m, static_cast<size_t>(m));
    if (!alpha_) {
      masses_.cross.push_back(std::accumulate(cross.begin(), cross.end(), 0.0));
      masses_.self.push_back(std::accumulate(self.begin(), self.end(), 0.0));
      return {.kept = all};
    }
    const auto layer = static_cast<size_t>(of_layer);
    const std::vector<int64_t> gone =
        fitprune_deletable(cross, self, masses_.cross.at(layer), masses_.self.at(layer), *alpha_);
    counts_.push_back(std::ssize(gone));
    std::vector<int64_t> stays;
    for (int64_t i = 0; i < m; ++i)
      if (!std::ranges::binary_search(gone, i)) stays.push_back(i);
    return {.kept = int64_tensor(stays).to(all.device())};
  }

  Masses& masses_;
  std::vector<int64_t>& counts_;
  std::optional<double> alpha_;
};

}  // namespace

FitpruneFit fit_fitprune(const LoadedModel& model, const Calibration& calibration, double reduction) {
  if (!(reduction > 0 && reduction < 1)) throw Error("fitprune: the reduction must be above 0 and below 1");
  constexpr int64_t kPasses = 8;  // the unpruned one, and seven tolerances
  const size_t samples = calibration.num_prompts;
  std::vector<Masses> masses(samples);
  int64_t done = 0;
  const auto run_all = [&](std::optional<double> alpha) {
    FitpruneCounts counts(samples);
    for (size_t c = 0; c < samples; ++c) {
      const Result result = run(model, calibration, c, std::make_shared<FitprunePass>(masses[c], counts[c], alpha));
      show(calibration, ++done, kPasses * static_cast<int64_t>(samples));
      if (alpha) continue;
      counts[c] = {std::accumulate(result.stats.image_tokens.begin(), result.stats.image_tokens.end(), int64_t{0})};
    }
    return counts;
  };
  const FitpruneCounts tokens = run_all(std::nullopt);
  FitpruneFit fit{tokens.at(0).at(0), {}};
  for (size_t c = 0; c < samples; ++c)
    if (tokens[c][0] != fit.num_visual || fit.num_visual == 0)
      throw Error("fitprune: prompt " + std::to_string(c) + " has " + std::to_string(tokens[c][0]) +
                  " image tokens and prompt 0 has " + std::to_string(tokens[0][0]) +
                  "; all must have the same number, above 0");
  const ModelFacts& facts = model.facts;
  const FitpruneCost cost{facts.num_layers, static_cast<double>(facts.hidden_size),
                          static_cast<double>(facts.intermediate_size)};
  fit.fitted = search_fitprune(fit.num_visual, cost, reduction, run_all);
  return fit;
}

std::string fitprune_recipe_json(const LoadedModel& model, const FitpruneFit& fit, double reduction) {
  const nlohmann::ordered_json json = {{"schema", kJsonSchema},
                                       {"method", "fitprune"},
                                       {"model", model.folder.filename().string()},
                                       {"layers", model.facts.num_layers},
                                       {"n_visual", fit.num_visual},
                                       {"reduction", reduction},
                                       {"alpha", fit.fitted.alpha},
                                       {"achieved", fit.fitted.achieved},
                                       {"delete", fit.fitted.deleted}};
  return json.dump() + "\n";
}

// ---- vtw ----

double kl_divergence(std::span<const float> of_logits, std::span<const float> from_logits) {
  const auto log_sum = [](std::span<const float> logits) {
    const double highest = *std::ranges::max_element(logits);
    double sum = 0;
    for (const float logit : logits) sum += std::exp(logit - highest);
    return highest + std::log(sum);
  };
  const double of_sum = log_sum(of_logits), from_sum = log_sum(from_logits);
  double kl = 0;
  for (size_t v = 0; v < of_logits.size(); ++v) {
    const double log_of = of_logits[v] - of_sum, of = std::exp(log_of);
    if (of > 0) kl += of * (log_of - (from_logits[v] - from_sum));
  }
  return std::max(kl, 0.0);  // rounding
}

int first_within(std::span<const double> kl, int first_layer, int num_layers, double eta) {
  for (size_t i = 0; i < kl.size(); ++i)
    if (kl[i] <= eta) return first_layer + static_cast<int>(i);
  return num_layers;
}

VtwFit fit_vtw(const LoadedModel& model, const Calibration& calibration, double eta, int first_layer) {
  const int depth = model.facts.num_layers;
  if (first_layer < 0 || first_layer >= depth)
    throw Error("vtw: the first candidate is layer " + std::to_string(first_layer) +
                ", but the model has layers 0 to " + std::to_string(depth - 1));
  if (!(eta >= 0)) throw Error("vtw: eta must be 0 or above");
  VtwFit fit{first_layer, std::vector<double>(static_cast<size_t>(depth - first_layer), 0.0), depth};
  const auto samples = static_cast<int64_t>(calibration.num_prompts);
  int64_t done = 0;
  const auto logits_of = [&](size_t i, const std::string& spec) {
    LogitsWatcher watcher;
    run(model, calibration, i, make_policy(spec), &watcher);
    show(calibration, ++done, samples * (1 + std::ssize(fit.kl)));
    return watcher.logits;
  };
  const auto values = [](const at::Tensor& logits) {
    return std::span<const float>(logits.const_data_ptr<float>(), static_cast<size_t>(logits.numel()));
  };
  for (size_t c = 0; c < calibration.num_prompts; ++c) {
    const at::Tensor full = logits_of(c, "none");
    for (size_t i = 0; i < fit.kl.size(); ++i) {
      const at::Tensor withdrawn = logits_of(c, "vtw:layer=" + std::to_string(first_layer + static_cast<int>(i)));
      fit.kl[i] += kl_divergence(values(withdrawn), values(full)) / static_cast<double>(samples);
    }
  }
  fit.layer = first_within(fit.kl, first_layer, depth, eta);
  return fit;
}

std::string vtw_recipe_json(const LoadedModel& model, const VtwFit& fit, double eta) {
  const nlohmann::ordered_json json = {{"schema", kJsonSchema},
                                       {"method", "vtw"},
                                       {"model", model.folder.filename().string()},
                                       {"layers", model.facts.num_layers},
                                       {"layer", fit.layer},
                                       {"eta", eta},
                                       {"first_layer", fit.first_layer},
                                       {"kl", fit.kl}};
  return json.dump() + "\n";
}

// ---- atp ----

AtpFit fit_atp(const LoadedModel& model, const Calibration& calibration, const std::string& spec,
               double wanted_tokens) {
  const std::vector<PolicySpec> specs = parse_policy_spec(spec);
  const auto has = [&](std::string_view option) {
    return std::ranges::any_of(specs.at(0).options, [&](const auto& o) { return o.name == option; });
  };
  if (specs.size() != 1 || specs[0].name != "atp" || has("weights") || has("theta_r"))
    throw Error("fit: " + spec + ": expected atp without weights and without theta_r");
  const auto with_threshold = [&](double theta) {
    std::array<char, 32> digits;
    const std::string number(digits.data(), std::to_chars(digits.data(), digits.data() + digits.size(), theta).ptr);
    const std::string begin = spec + (specs[0].options.empty() ? ":" : ",") + "theta_r=" + number;
    return has("theta_s") ? begin : begin + ",theta_s=" + number;
  };
  constexpr int kRounds = 12;
  int64_t done = 0;
  const auto mean_tokens = [&](const std::string& policy) {
    double sum = 0;
    int64_t entries = 0;
    for (size_t c = 0; c < calibration.num_prompts; ++c) {
      const Result result = run(model, calibration, c, make_policy(policy));
      for (const auto& layer : result.stats.image_tokens_per_layer)
        for (const int64_t tokens : layer) sum += static_cast<double>(tokens), ++entries;
      show(calibration, ++done, (kRounds + 2) * static_cast<int64_t>(calibration.num_prompts));
    }
    if (entries == 0) throw Error("fit: the prompts have no pictures");
    return sum / static_cast<double>(entries);
  };
  AtpFit best;
  const auto try_theta = [&](double theta) {
    const std::string policy = with_threshold(theta);
    const double mean = mean_tokens(policy);
    if (best.spec.empty() || std::abs(mean - wanted_tokens) < std::abs(best.mean_tokens - wanted_tokens))
      best = {policy, theta, mean};
    return mean;
  };
  const double most = try_theta(0), fewest = try_theta(1);
  if (wanted_tokens > most || wanted_tokens < fewest)
    throw Error("fit: thresholds reach from " + std::to_string(fewest) + " to " + std::to_string(most) +
                " tokens on the average over layers, not " + std::to_string(wanted_tokens));
  double low = 0, high = 1;
  for (int round = 0; round < kRounds; ++round) {
    const double middle = (low + high) / 2;
    (try_theta(middle) > wanted_tokens ? low : high) = middle;
  }
  return best;
}

}  // namespace espalier
