// SPDX-License-Identifier: Apache-2.0
#include "pruning/stages.h"

#include <limits>
#include <string>

#include "espalier/error.h"

namespace espalier {

namespace {

// Whether a > b, exactly.
bool is_above(Fraction a, Fraction b) {
  __extension__ using Int128 = __int128;
  return static_cast<Int128>(a.num) * b.den > static_cast<Int128>(b.num) * a.den;
}

Fraction half_of(std::string_view policy, Fraction f) {
  if (f.num % 2 == 0) return {f.num / 2, f.den};
  if (f.den > std::numeric_limits<int64_t>::max() / 2)
    throw Error(std::string(policy) + ": keep_ratio has too many digits to be halved exactly");
  return {f.num, f.den * 2};
}

}  // namespace

std::vector<int> scaled_layers(std::span<const int> of_32, int num_layers) {
  std::vector<int> layers;
  for (const int layer : of_32) layers.push_back((2 * num_layers * layer + 32) / 64);
  return layers;
}

void check_stage_layers(std::string_view policy, std::span<const int> layers, int lowest, int num_layers) {
  int previous = lowest - 1;
  for (const int layer : layers) {
    const std::string what =
        std::string(policy) + ": layers=" + write_value(std::vector<int>(layers.begin(), layers.end()));
    if (layer < lowest) throw Error(what + ", but the first possible one is " + std::to_string(lowest));
    if (layer > num_layers) throw Error(what + ", but the model has " + std::to_string(num_layers) + " layers");
    if (layer <= previous) throw Error(what + " do not ascend");
    previous = layer;
  }
}

std::vector<Amount> amounts_of_stages(std::string_view policy, const StageAmounts& amounts, size_t stages) {
  const std::string who(policy);
  const bool is_ratio = !amounts.keep_ratio.empty();
  if (is_ratio && !amounts.num_kept.empty()) throw Error(who + ": give keep_ratio or num_kept, not both");
  if (!is_ratio && amounts.num_kept.empty()) throw Error(who + ": keep_ratio or num_kept is needed");
  std::vector<Amount> list;
  for (const Fraction ratio : amounts.keep_ratio) list.push_back({.keep_ratio = ratio, .num_kept = {}});
  for (const int64_t number : amounts.num_kept) list.push_back({.keep_ratio = {}, .num_kept = number});
  for (const Amount& amount : list) check_amount(policy, amount);
  if (is_ratio && list.size() == 1)
    while (list.size() < stages)
      list.push_back({.keep_ratio = half_of(policy, *list.back().keep_ratio), .num_kept = {}});
  if (list.size() != stages)
    throw Error(who + ": " + std::to_string(list.size()) + " amounts for " + std::to_string(stages) + " layers");
  for (size_t i = 1; i < stages; ++i)
    if (is_ratio ? is_above(*list[i].keep_ratio, *list[i - 1].keep_ratio) : *list[i].num_kept > *list[i - 1].num_kept)
      throw Error(who + ": stage " + std::to_string(i) + " keeps more than the one before it");
  return list;
}

}  // namespace espalier
