// SPDX-License-Identifier: Apache-2.0
#include "pruning/policy_spec.h"

#include <charconv>
#include <numeric>
#include <system_error>

#include "base/error_text.h"
#include "espalier/error.h"

namespace espalier {

namespace {

std::string_view trimmed(std::string_view text) {
  const auto first = text.find_first_not_of(' ');
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(' ') - first + 1);
}

std::vector<std::string_view> split(std::string_view text, std::string_view separator) {
  std::vector<std::string_view> parts;
  for (;;) {
    const auto at = text.find(separator);
    parts.push_back(text.substr(0, at));
    if (at == std::string_view::npos) return parts;
    text.remove_prefix(at + separator.size());
  }
}

// The whole of `text` as a number.
template <typename T>
std::optional<T> parse_number(std::string_view text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

Fraction reduced(int64_t num, int64_t den) {
  const int64_t divisor = std::gcd(num, den);
  return {num / divisor, den / divisor};
}

PolicySpec parse_one(std::string_view text) {
  const auto colon = text.find(':');
  PolicySpec spec{std::string(text.substr(0, colon)), {}};
  if (spec.name.empty()) throw Error("policy " + in_quotes(text) + ": a name is missing");
  if (colon == std::string_view::npos) return spec;
  for (const std::string_view option : split(text.substr(colon + 1), ",")) {
    const auto equals = option.find('=');
    if (equals == std::string_view::npos || equals == 0 || equals + 1 == option.size())
      throw Error("policy " + in_quotes(text) + ": expected option=value, got " + in_quotes(option));
    spec.options.push_back({std::string(option.substr(0, equals)), std::string(option.substr(equals + 1))});
  }
  return spec;
}

}  // namespace

std::vector<PolicySpec> parse_policy_spec(std::string_view text) {
  if (trimmed(text).empty()) throw Error("policy: the spec is empty");
  std::vector<PolicySpec> specs;
  for (const std::string_view part : split(text, " + ")) {
    if (trimmed(part).empty()) throw Error("policy " + in_quotes(text) + ": nothing stands beside a ' + '");
    specs.push_back(parse_one(trimmed(part)));
  }
  return specs;
}

std::optional<Fraction> parse_fraction(std::string_view text) {
  if (const auto slash = text.find('/'); slash != std::string_view::npos) {
    const auto num = parse_number<int64_t>(text.substr(0, slash)), den = parse_number<int64_t>(text.substr(slash + 1));
    if (!num || !den || *den <= 0) return std::nullopt;
    return reduced(*num, *den);
  }
  const auto point = text.find('.');
  if (point == std::string_view::npos) {
    const auto whole = parse_number<int64_t>(text);
    return whole ? std::optional(Fraction{*whole, 1}) : std::nullopt;
  }
  const std::string_view decimals = text.substr(point + 1);
  const auto digits = parse_number<int64_t>(std::string(text.substr(0, point)) + std::string(decimals));
  const bool has_only_digits = decimals.find_first_not_of("0123456789") == std::string_view::npos;
  if (!digits || !has_only_digits || decimals.size() > 18) return std::nullopt;
  int64_t den = 1;
  for (size_t i = 0; i < decimals.size(); ++i) den *= 10;
  return reduced(*digits, den);
}

}  // namespace espalier
