// SPDX-License-Identifier: Apache-2.0
#include "runtime/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <utility>

#include "espalier/error.h"

namespace espalier {

namespace {

[[noreturn]] void refuse(const char* option, const char* expected, double got) {
  throw Error(std::string(option) + ": " + expected + " was expected, got " + std::to_string(got));
}

int32_t argmax(std::span<const float> logits) {
  return static_cast<int32_t>(std::ranges::max_element(logits) - logits.begin());  // the first of equals
}

}  // namespace

SamplingRules sampling_rules(const GenerationOptions& options, const GenerationConfig& defaults) {
  constexpr int64_t kMostAlternatives = 20;
  if (options.top_logprobs && (*options.top_logprobs < 0 || *options.top_logprobs > kMostAlternatives))
    refuse("top_logprobs", "a number from 0 up to 20", static_cast<double>(*options.top_logprobs));
  SamplingRules rules;
  if (options.greedy) return rules;
  const bool asks_for_sampling = options.temperature || options.top_k || options.top_p;
  rules.do_sample = options.do_sample.value_or(asks_for_sampling || defaults.do_sample);
  rules.temperature = options.temperature.value_or(defaults.temperature);
  rules.top_k = options.top_k.value_or(defaults.top_k);
  rules.top_p = options.top_p.value_or(defaults.top_p);
  rules.repetition_penalty = options.repetition_penalty.value_or(defaults.repetition_penalty);
  if (!(rules.temperature > 0)) refuse("temperature", "a number above 0", rules.temperature);
  if (rules.top_k < 0) refuse("top_k", "0 or more", static_cast<double>(rules.top_k));
  if (!(rules.top_p > 0 && rules.top_p <= 1)) refuse("top_p", "a number above 0 and up to 1", rules.top_p);
  if (!(rules.repetition_penalty > 0)) refuse("repetition_penalty", "a number above 0", rules.repetition_penalty);
  return rules;
}

TokenLogprobs logprobs_of(std::span<const float> logits, int32_t id, int64_t top) {
  const double largest = std::ranges::max(logits);
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - largest);
  const double log_sum = largest + std::log(sum);
  const auto of = [&](int32_t token) { return static_cast<float>(logits[static_cast<size_t>(token)] - log_sum); };
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto num_top = static_cast<std::ptrdiff_t>(std::min<int64_t>(top, std::ssize(order)));
  std::ranges::partial_sort(order, order.begin() + num_top,
                            [&](int32_t a, int32_t b) { return std::pair(-logits[a], a) < std::pair(-logits[b], b); });
  TokenLogprobs result{.id = id, .logprob = of(id), .top = {}};
  for (auto token = order.begin(); token != order.begin() + num_top; ++token)
    result.top.push_back({*token, of(*token)});
  return result;
}

Sampler::Sampler(const SamplingRules& rules, uint64_t seed, std::span<const int32_t> prompt_ids)
    : rules_(rules), draws_(seed) {
  if (rules_.repetition_penalty != 1.0) seen_.insert(prompt_ids.begin(), prompt_ids.end());
}

void Sampler::penalise(std::span<float> logits) const {
  const auto penalty = static_cast<float>(rules_.repetition_penalty);
  for (const int32_t id : seen_)
    if (id >= 0 && id < std::ssize(logits)) logits[id] = logits[id] > 0 ? logits[id] / penalty : logits[id] * penalty;
}

double Sampler::uniform() {
  return static_cast<double>(draws_.next() >> 11) * 0x1.0p-53;
}

int32_t Sampler::draw(std::span<float> logits) {
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  if (rules_.top_k > 0 && rules_.top_k < std::ssize(order)) order.resize(static_cast<size_t>(rules_.top_k));
  std::vector<double> weight(order.size());
  const double top = logits[order[0]];
  for (size_t i = 0; i < order.size(); ++i) weight[i] = std::exp((logits[order[i]] - top) / rules_.temperature);
  const double total = std::accumulate(weight.begin(), weight.end(), 0.0);
  // The smallest set of best tokens that holds top_p of the mass; always at least one.
  size_t kept = 0;
  double mass = 0;
  while (kept < weight.size() && (kept == 0 || mass < rules_.top_p * total)) mass += weight[kept++];
  double left = uniform() * mass;
  for (size_t i = 0; i + 1 < kept; ++i) {
    if (left < weight[i]) return order[i];
    left -= weight[i];
  }
  return order[kept - 1];
}

int32_t Sampler::next(std::span<float> logits) {
  if (rules_.repetition_penalty != 1.0) penalise(logits);
  const int32_t id = rules_.do_sample ? draw(logits) : argmax(logits);
  if (rules_.repetition_penalty != 1.0) seen_.insert(id);
  return id;
}

}  // namespace espalier
