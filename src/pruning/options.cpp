// SPDX-License-Identifier: Apache-2.0
#include "espalier/policies/options.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <system_error>

#include "base/closest.h"
#include "base/error_text.h"

namespace espalier {

namespace {

// The whole of `text` as a number.
template <typename T>
std::optional<T> parse_number(std::string_view text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

template <typename V>
std::string read_number(std::string_view text, V& value, std::string_view wrong) {
  const auto parsed = parse_number<V>(text);
  if (!parsed) return std::string(wrong);
  value = *parsed;
  return {};
}

template <typename V>
std::string read_list(std::string_view text, std::vector<V>& list, std::string_view wrong) {
  list.clear();
  for (;;) {
    const auto colon = text.find(':');
    if (!read_value(text.substr(0, colon), list.emplace_back()).empty()) return std::string(wrong);
    if (colon == std::string_view::npos) return {};
    text.remove_prefix(colon + 1);
  }
}

std::string shortest(double value) {
  std::array<char, 32> digits;
  return {digits.data(), std::to_chars(digits.data(), digits.data() + digits.size(), value).ptr};
}

}  // namespace

std::string read_value(std::string_view text, int& value) {
  return read_number(text, value, "is not an integer");
}
std::string read_value(std::string_view text, int64_t& value) {
  return read_number(text, value, "is not an integer");
}
std::string read_value(std::string_view text, uint64_t& value) {
  return read_number(text, value, "is not an integer from 0 to 2^64 - 1");
}
// A fraction, a decimal or anything else that reads as a finite double.
std::string read_value(std::string_view text, double& value) {
  if (const auto exact = parse_fraction(text)) {
    value = static_cast<double>(exact->num) / static_cast<double>(exact->den);
    return {};
  }
  if (!read_number(text, value, "is not a finite number").empty() || !std::isfinite(value))
    return "is not a finite number";
  return {};
}
std::string read_value(std::string_view text, bool& value) {
  value = text == "true";
  return text == "true" || text == "false" ? "" : "is not one of true, false";
}
std::string read_value(std::string_view text, Fraction& value) {
  const auto parsed = parse_fraction(text);
  if (!parsed) return "is not a number (a/b, or a decimal)";
  value = *parsed;
  return {};
}
std::string read_value(std::string_view text, std::vector<int>& value) {
  return read_list(text, value, "is not a list of integers joined by colons");
}
std::string read_value(std::string_view text, std::vector<int64_t>& value) {
  return read_list(text, value, "is not a list of integers joined by colons");
}
std::string read_value(std::string_view text, std::vector<double>& value) {
  return read_list(text, value, "is not a list of finite numbers joined by colons");
}
std::string read_value(std::string_view text, std::vector<Fraction>& value) {
  return read_list(text, value, "is not a list of numbers (a/b, or a decimal) joined by colons");
}

std::string write_value(int64_t value) {
  return std::to_string(value);
}
std::string write_value(uint64_t value) {
  return std::to_string(value);
}
std::string write_value(double value) {
  return shortest(value);
}
std::string write_value(bool value) {
  return value ? "true" : "false";
}
std::string write_value(Fraction value) {
  return to_string(value);
}

std::string out_of_range(double value, const Range& range) {
  if (!std::isfinite(value)) return "is not a finite number";
  if (value >= range.low && value <= range.high) return {};
  if (std::isfinite(range.low) && std::isfinite(range.high))
    return "is not from " + shortest(range.low) + " to " + shortest(range.high);
  return value < range.low ? "is below " + shortest(range.low) : "is above " + shortest(range.high);
}

bool ReadContext::has(std::string_view option) const {
  return std::ranges::any_of(given, [&](const GivenOption& one) { return one.name == option; });
}

const PolicyFiles& ReadContext::get_files() const {
  if (!files) throw Error(std::string(policy) + ": its options name a file, and nothing here reads files");
  return *files;
}

void check_names(std::string_view policy, std::span<const GivenOption> given,
                 const std::vector<std::string_view>& known) {
  for (auto option = given.begin(); option != given.end(); ++option) {
    if (std::ranges::find(known, option->name) == known.end()) {
      std::string list;
      for (const std::string_view k : known) list += (list.empty() ? "" : ", ") + std::string(k);
      throw Error(std::string(policy) + ": unknown option " + in_quotes(option->name) +
                  did_you_mean(option->name, known) + "; its options are " + list);
    }
    if (std::any_of(given.begin(), option, [&](const GivenOption& earlier) { return earlier.name == option->name; }))
      throw Error(std::string(policy) + ": option " + shown(option->name) + " is given twice");
  }
}

void refuse_option(std::string_view policy, const GivenOption& given, const std::string& wrong) {
  throw Error(std::string(policy) + ": " + given.name + "=" + shown(given.value) + " " + wrong);
}

const OptionSet<CommonOptions>& common_option_set() {
  static const OptionSet<CommonOptions> set = {
      {"positions",
       &CommonOptions::positions,
       {{"keep", Positions::kKeep}, {"compact", Positions::kCompact}},
       "keep: original position ids; compact: renumbered"},
      {"min_per_image", &CommonOptions::min_per_image, "tokens that stay of each image", at_least(0)},
      {"min_tokens", &CommonOptions::min_tokens, "below this many image tokens nothing is dropped", at_least(0)}};
  return set;
}

}  // namespace espalier
