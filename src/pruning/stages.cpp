// SPDX-License-Identifier: Apache-2.0
#include "pruning/stages.h"

#include <limits>
#include <string>

#include "espalier/error.h"
#include "pruning/selection.h"

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

template <typename T, typename ToText>
std::string joined(std::span<const T> values, ToText&& to_text) {
  std::string text;
  for (const T& value : values) text += (text.empty() ? "" : ":") + to_text(value);
  return text;
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
        std::string(policy) + ": layers=" + joined(layers, [](int l) { return std::to_string(l); });
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

StageAmounts read_stage_amounts(const OptionReader& reader, const StageAmounts& default_amounts) {
  StageAmounts amounts{reader.fractions("keep_ratio").value_or(std::vector<Fraction>{}),
                       reader.integers("num_kept").value_or(std::vector<int64_t>{})};
  return amounts == StageAmounts{} ? default_amounts : amounts;
}

std::vector<int> read_layers(const OptionReader& reader) {
  std::vector<int> layers;
  for (const int64_t layer : reader.integers("layers").value_or(std::vector<int64_t>{})) {
    if (layer < 0 || layer > 1 << 20) throw Error("layers=" + std::to_string(layer) + " is out of range");
    layers.push_back(static_cast<int>(layer));
  }
  return layers;
}

void write_stage_amounts(SpecWriter& writer, const StageAmounts& amounts, const StageAmounts& default_amounts) {
  if (amounts == default_amounts) return;
  const std::span<const Fraction> ratios(amounts.keep_ratio);
  const std::span<const int64_t> numbers(amounts.num_kept);
  if (!ratios.empty()) writer.add("keep_ratio", joined(ratios, [](Fraction f) { return to_string(f); }));
  if (!numbers.empty()) writer.add("num_kept", joined(numbers, [](int64_t n) { return std::to_string(n); }));
}

void write_layers(SpecWriter& writer, std::span<const int> layers) {
  if (!layers.empty()) writer.add("layers", joined(layers, [](int l) { return std::to_string(l); }));
}

}  // namespace espalier
