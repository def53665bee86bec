// SPDX-License-Identifier: Apache-2.0
// The spec string `name:option=value,option=value`, joined by ` + ` to pipelines: reading it, and writing it back. Not
// the policies: what a name means is policies.cpp's.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "espalier/error.h"
#include "espalier/policies/amount.h"
#include "espalier/policies/table.h"
#include "espalier/pruning.h"

namespace espalier {

struct PolicySpec {
  std::string name;
  std::vector<std::pair<std::string, std::string>> options;  // in the order written
};

// One entry for each policy of the pipeline. Throws Error where the form is broken.
std::vector<PolicySpec> parse_policy_spec(std::string_view text);

// `a/b`, or a decimal taken as written; reduced. Nothing when it is neither.
std::optional<Fraction> parse_fraction(std::string_view text);
std::string to_string(Fraction fraction);

// The names of an option's values, for reading and writing.
template <typename E, size_t n>
using ValueNames = std::array<std::pair<std::string_view, E>, n>;

// The options of one policy by type. Each function returns the default when the option is not there and throws Error,
// naming policy and option, when its value is not of the type or out of range.
class OptionReader {
 public:
  // Throws Error for an option that neither the entry nor common_policy_options() lists, and for one given twice.
  OptionReader(PolicySpec spec, const PolicyEntry& entry, const PolicyFiles* files = nullptr);

  // Reads the files that options name.
  const PolicyFiles& files() const;

  std::optional<std::string_view> text(std::string_view name) const;
  bool boolean(std::string_view name, bool default_value) const;
  int64_t integer(std::string_view name, int64_t default_value, int64_t low = std::numeric_limits<int64_t>::min(),
                  int64_t high = std::numeric_limits<int64_t>::max()) const;
  uint64_t unsigned_integer(std::string_view name, uint64_t default_value) const;
  Fraction fraction(std::string_view name, Fraction default_value) const;
  double number(std::string_view name, double default_value) const;
  std::optional<std::vector<int64_t>> integers(std::string_view name) const;    // joined by colons
  std::optional<std::vector<Fraction>> fractions(std::string_view name) const;  // joined by colons
  std::optional<std::vector<double>> numbers(std::string_view name) const;      // joined by colons

  template <typename E, size_t n>
  E choice(std::string_view name, E default_value, const ValueNames<E, n>& names) const {
    const auto value = text(name);
    if (!value) return default_value;
    std::string known;
    for (const auto& [word, meaning] : names) {
      if (word == *value) return meaning;
      known += (known.empty() ? "" : ", ") + std::string(word);
    }
    throw Error(wrong(name, "is not one of " + known));
  }

  Amount amount() const;  // keep_ratio and num_kept, as far as they are there
  CommonOptions common() const;
  bool row_breaks_compete(bool default_value) const;

 private:
  std::string wrong(std::string_view name, const std::string& why) const;  // "fastv: layer=x …"

  PolicySpec spec_;
  const PolicyFiles* files_;
};

// A spec string from options: those that differ from their defaults, in the order written.
class SpecWriter {
 public:
  explicit SpecWriter(std::string_view name) : text_(name) {}

  SpecWriter& add(std::string_view name, std::string_view value);
  SpecWriter& add(std::string_view name, bool value, bool default_value);
  SpecWriter& add(std::string_view name, int64_t value, int64_t default_value);
  SpecWriter& add(std::string_view name, double value, double default_value);
  SpecWriter& add(std::string_view name, Fraction value, Fraction default_value);
  SpecWriter& add(std::string_view name, std::span<const double> values);  // nothing where there are none
  SpecWriter& amount(const Amount& amount);
  SpecWriter& common(const CommonOptions& common);
  SpecWriter& row_breaks(bool compete, bool default_value);

  template <typename E, size_t n>
  SpecWriter& choice(std::string_view name, E value, E default_value, const ValueNames<E, n>& names) {
    if (value != default_value)
      for (const auto& [word, meaning] : names)
        if (meaning == value) return add(name, word);
    return *this;
  }

  const std::string& text() const { return text_; }

 private:
  std::string text_;
  bool has_options_ = false;
};

}  // namespace espalier
