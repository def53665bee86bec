// SPDX-License-Identifier: Apache-2.0
#include "pruning/policy_spec.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>
#include <system_error>

namespace espalier {

namespace {

constexpr ValueNames<Positions, 2> kPositionNames = {{{"keep", Positions::kKeep}, {"compact", Positions::kCompact}}};

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

// A fraction, a decimal or anything else that reads as a finite double.
std::optional<double> parse_finite(std::string_view text) {
  if (const auto exact = parse_fraction(text)) return static_cast<double>(exact->num) / static_cast<double>(exact->den);
  const auto parsed = parse_number<double>(text);
  return parsed && std::isfinite(*parsed) ? parsed : std::nullopt;
}

std::string shortest(double value) {
  std::array<char, 32> digits;
  return {digits.data(), std::to_chars(digits.data(), digits.data() + digits.size(), value).ptr};
}

Fraction reduced(int64_t num, int64_t den) {
  const int64_t divisor = std::gcd(num, den);
  return {num / divisor, den / divisor};
}

std::string in_quotes(std::string_view text) {
  return '"' + std::string(text) + '"';
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
    spec.options.emplace_back(option.substr(0, equals), option.substr(equals + 1));
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

std::string to_string(Fraction fraction) {
  const Fraction f = reduced(fraction.num, fraction.den);
  return f.den == 1 ? std::to_string(f.num) : std::to_string(f.num) + "/" + std::to_string(f.den);
}

OptionReader::OptionReader(PolicySpec spec, const PolicyEntry& entry, const PolicyFiles* files)
    : spec_(std::move(spec)), files_(files) {
  std::vector<std::string_view> known;
  for (const PolicyOption& option : entry.options) known.push_back(option.name);
  for (const PolicyOption& option : common_policy_options()) known.push_back(option.name);
  for (auto option = spec_.options.begin(); option != spec_.options.end(); ++option) {
    const std::string& name = option->first;
    if (std::find(known.begin(), known.end(), name) == known.end()) {
      std::string list;
      for (const std::string_view k : known) list += (list.empty() ? "" : ", ") + std::string(k);
      throw Error(spec_.name + ": unknown option " + in_quotes(name) + "; its options are " + list);
    }
    if (std::any_of(spec_.options.begin(), option, [&](const auto& earlier) { return earlier.first == name; }))
      throw Error(spec_.name + ": option " + name + " is given twice");
  }
}

const PolicyFiles& OptionReader::files() const {
  if (!files_) throw Error(spec_.name + ": its options name a file, and nothing here reads files");
  return *files_;
}

std::string OptionReader::wrong(std::string_view name, const std::string& why) const {
  return spec_.name + ": " + std::string(name) + "=" + std::string(*text(name)) + " " + why;
}

std::optional<std::string_view> OptionReader::text(std::string_view name) const {
  for (const auto& [option, value] : spec_.options)
    if (option == name) return value;
  return std::nullopt;
}

bool OptionReader::boolean(std::string_view name, bool default_value) const {
  return choice(name, default_value, ValueNames<bool, 2>{{{"true", true}, {"false", false}}});
}

int64_t OptionReader::integer(std::string_view name, int64_t default_value, int64_t low, int64_t high) const {
  const auto value = text(name);
  if (!value) return default_value;
  const auto parsed = parse_number<int64_t>(*value);
  if (!parsed) throw Error(wrong(name, "is not an integer"));
  if (*parsed < low) throw Error(wrong(name, "is below " + std::to_string(low)));
  if (*parsed > high) throw Error(wrong(name, "is above " + std::to_string(high)));
  return *parsed;
}

uint64_t OptionReader::unsigned_integer(std::string_view name, uint64_t default_value) const {
  const auto value = text(name);
  if (!value) return default_value;
  const auto parsed = parse_number<uint64_t>(*value);
  if (!parsed) throw Error(wrong(name, "is not an integer from 0 to 2^64 - 1"));
  return *parsed;
}

Fraction OptionReader::fraction(std::string_view name, Fraction default_value) const {
  const auto value = text(name);
  if (!value) return default_value;
  const auto parsed = parse_fraction(*value);
  if (!parsed) throw Error(wrong(name, "is not a number (a/b, or a decimal)"));
  return *parsed;
}

double OptionReader::number(std::string_view name, double default_value) const {
  const auto value = text(name);
  if (!value) return default_value;
  const auto parsed = parse_finite(*value);
  if (!parsed) throw Error(wrong(name, "is not a finite number"));
  return *parsed;
}

std::optional<std::vector<double>> OptionReader::numbers(std::string_view name) const {
  const auto value = text(name);
  if (!value) return std::nullopt;
  std::vector<double> list;
  for (const std::string_view part : split(*value, ":")) {
    const auto parsed = parse_finite(part);
    if (!parsed) throw Error(wrong(name, "is not a list of finite numbers joined by colons"));
    list.push_back(*parsed);
  }
  return list;
}

std::optional<std::vector<int64_t>> OptionReader::integers(std::string_view name) const {
  const auto value = text(name);
  if (!value) return std::nullopt;
  std::vector<int64_t> list;
  for (const std::string_view part : split(*value, ":")) {
    const auto parsed = parse_number<int64_t>(part);
    if (!parsed) throw Error(wrong(name, "is not a list of integers joined by colons"));
    list.push_back(*parsed);
  }
  return list;
}

std::optional<std::vector<Fraction>> OptionReader::fractions(std::string_view name) const {
  const auto value = text(name);
  if (!value) return std::nullopt;
  std::vector<Fraction> list;
  for (const std::string_view part : split(*value, ":")) {
    const auto parsed = parse_fraction(part);
    if (!parsed) throw Error(wrong(name, "is not a list of numbers (a/b, or a decimal) joined by colons"));
    list.push_back(*parsed);
  }
  return list;
}

Amount OptionReader::amount() const {
  Amount amount;
  if (text("keep_ratio")) amount.keep_ratio = fraction("keep_ratio", {});
  if (text("num_kept")) amount.num_kept = integer("num_kept", 0);
  return amount;
}

CommonOptions OptionReader::common() const {
  const CommonOptions defaults;
  return {choice("positions", defaults.positions, kPositionNames), integer("min_per_image", defaults.min_per_image, 0),
          integer("min_tokens", defaults.min_tokens, 0)};
}

bool OptionReader::row_breaks_compete(bool default_value) const {
  return choice("row_breaks", default_value, ValueNames<bool, 2>{{{"pool", true}, {"follow", false}}});
}

SpecWriter& SpecWriter::add(std::string_view name, std::string_view value) {
  text_ += (has_options_ ? "," : ":") + std::string(name) + "=" + std::string(value);
  has_options_ = true;
  return *this;
}

SpecWriter& SpecWriter::add(std::string_view name, bool value, bool default_value) {
  return value == default_value ? *this : add(name, value ? "true" : "false");
}

SpecWriter& SpecWriter::add(std::string_view name, int64_t value, int64_t default_value) {
  return value == default_value ? *this : add(name, std::to_string(value));
}

SpecWriter& SpecWriter::add(std::string_view name, double value, double default_value) {
  return value == default_value ? *this : add(name, shortest(value));
}

SpecWriter& SpecWriter::add(std::string_view name, std::span<const double> values) {
  std::string list;
  for (const double value : values) list += (list.empty() ? "" : ":") + shortest(value);
  return list.empty() ? *this : add(name, list);
}

SpecWriter& SpecWriter::add(std::string_view name, Fraction value, Fraction default_value) {
  const std::string text = to_string(value);
  return text == to_string(default_value) ? *this : add(name, text);
}

SpecWriter& SpecWriter::amount(const Amount& amount) {
  if (amount.keep_ratio) add("keep_ratio", to_string(*amount.keep_ratio));
  if (amount.num_kept) add("num_kept", std::to_string(*amount.num_kept));
  return *this;
}

SpecWriter& SpecWriter::common(const CommonOptions& common) {
  const CommonOptions defaults;
  choice("positions", common.positions, defaults.positions, kPositionNames);
  add("min_per_image", common.min_per_image, defaults.min_per_image);
  return add("min_tokens", common.min_tokens, defaults.min_tokens);
}

SpecWriter& SpecWriter::row_breaks(bool compete, bool default_value) {
  return compete == default_value ? *this : add("row_breaks", compete ? "pool" : "follow");
}

}  // namespace espalier
