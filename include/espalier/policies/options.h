// SPDX-License-Identifier: Apache-2.0
// The options of a policy, each described once: `{"lambda1", &CatpOptions::lambda1, "what it means"}`. From that they
// are read from a spec string, checked, written back where they differ from their defaults, and documented. The
// built-in policies use nothing else, and a policy of one's own may (examples/keep_centre_policy.cpp).
//
//   struct Options { Fraction share{1, 2}; CommonOptions common; };  // `common`: what every policy takes
//   const OptionSet<Options> kOptions = {{"share", &Options::share, "part that stays", {0, 1}}};
//   const Options options = options_of("mine", given, kOptions);     // throws Error naming policy and option
//   spec_of("mine", kOptions, options)                               // "mine:share=1/3,min_per_image=2"
#pragma once

#include <cmath>
#include <concepts>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "espalier/error.h"
#include "espalier/policies/amount.h"
#include "espalier/policies/table.h"
#include "espalier/pruning.h"

namespace espalier {

// One `name=value` of a spec string, in the order written.
struct GivenOption {
  std::string name;
  std::string value;
};

// `a/b`, or a decimal taken as written; reduced. Nothing when it is neither.
std::optional<Fraction> parse_fraction(std::string_view text);

// ---- values as text; lists are joined by colons ----

// What is wrong with the text ("is not an integer"), or nothing.
std::string read_value(std::string_view text, int& value);
std::string read_value(std::string_view text, int64_t& value);
std::string read_value(std::string_view text, uint64_t& value);
std::string read_value(std::string_view text, double& value);
std::string read_value(std::string_view text, bool& value);
std::string read_value(std::string_view text, Fraction& value);
std::string read_value(std::string_view text, std::vector<int>& value);
std::string read_value(std::string_view text, std::vector<int64_t>& value);
std::string read_value(std::string_view text, std::vector<double>& value);
std::string read_value(std::string_view text, std::vector<Fraction>& value);
template <typename V>
std::string read_value(std::string_view text, std::optional<V>& value) {
  return read_value(text, value.emplace());
}

std::string write_value(int64_t value);
std::string write_value(uint64_t value);
std::string write_value(double value);
std::string write_value(bool value);
std::string write_value(Fraction value);
inline std::string write_value(int value) {
  return write_value(int64_t{value});
}
template <typename V>
std::string write_value(const std::vector<V>& list) {  // nothing for an empty one
  std::string text;
  for (const V& value : list) text += (text.empty() ? "" : ":") + write_value(value);
  return text;
}
template <typename V>
std::string write_value(const std::optional<V>& value) {  // nothing where it is unset
  return value ? write_value(*value) : std::string();
}

// ---- ranges ----

struct Range {
  double low = -HUGE_VAL, high = HUGE_VAL;
};
constexpr Range at_least(double low) {
  return {low, HUGE_VAL};
}
inline constexpr Range kAnyValue;
inline constexpr Range kShare{0, 1};

// What is wrong with a value, or nothing.
std::string out_of_range(double value, const Range& range);
inline double as_number(Fraction value) {
  return value.den > 0 ? static_cast<double>(value.num) / static_cast<double>(value.den) : -HUGE_VAL;
}
template <typename V>
requires std::is_arithmetic_v<V>
double as_number(V value) {
  return static_cast<double>(value);
}

// ---- options ----

// What reading an option may ask about the rest of the spec.
struct ReadContext {
  std::string_view policy;
  std::span<const GivenOption> given;
  const PolicyFiles* files = nullptr;

  bool has(std::string_view option) const;
  const PolicyFiles& get_files() const;  // throws Error where nothing reads files
};

template <typename V>
struct IsOptional : std::false_type {
  using Value = V;
};
template <typename V>
struct IsOptional<std::optional<V>> : std::true_type {
  using Value = V;
};
// What an option holds where it is set.
template <typename Access, typename T>
using ValueOf = typename IsOptional<std::remove_cvref_t<std::invoke_result_t<Access, T&>>>::Value;
template <typename E>
using Words = std::vector<std::pair<std::string_view, E>>;

template <typename T>
struct Option {
  std::string_view name, meaning;
  std::function<std::string(T&, std::string_view, const ReadContext&)> read;  // says what is wrong, or nothing
  std::function<std::string(const T&)> write;                                 // nothing: unset
  std::function<void(std::string_view policy, const T&)> check = {};

  Option(std::string_view option, std::string_view what, decltype(read) reads, decltype(write) writes)
      : name(option), meaning(what), read(std::move(reads)), write(std::move(writes)) {}

  // `access`: a pointer to a member, or a function from an options struct to a reference.
  template <typename Access>
  Option(std::string_view option, Access access, std::string_view what, Range range = kAnyValue)
      : name(option), meaning(what) {
    read = [access](T& options, std::string_view text, const ReadContext&) {
      return read_value(text, std::invoke(access, options));
    };
    write = [access](const T& options) { return write_value(std::invoke(access, options)); };
    using Value = std::remove_cvref_t<std::invoke_result_t<Access, T&>>;
    if constexpr (IsOptional<Value>::value || requires(Value v) { as_number(v); })
      check = [access, range, this_name = option](std::string_view policy, const T& options) {
        const Value& value = std::invoke(access, options);
        std::string wrong;
        if constexpr (!IsOptional<Value>::value)
          wrong = out_of_range(as_number(value), range);
        else if (value)
          wrong = out_of_range(as_number(*value), range);
        if (!wrong.empty())
          throw Error(std::string(policy) + ": " + std::string(this_name) + "=" + write_value(value) + " " + wrong);
      };
  }

  // One of a few words.
  template <typename Access>
  Option(std::string_view option, Access access, Words<ValueOf<Access, T>> words, std::string_view what)
      : name(option), meaning(what) {
    read = [access, words](T& options, std::string_view text, const ReadContext&) -> std::string {
      std::string known;
      for (const auto& [word, value] : words) {
        if (word == text) return std::invoke(access, options) = value, std::string();
        known += (known.empty() ? "" : ", ") + std::string(word);
      }
      return "is not one of " + known;
    };
    write = [access, words](const T& options) {
      for (const auto& [word, value] : words)
        if (std::invoke(access, options) == value) return std::string(word);
      return std::string();
    };
  }
};

template <typename T>
class OptionSet {
 public:
  OptionSet(std::initializer_list<Option<T>> options) : options_(options) {}

  const Option<T>* find(std::string_view name) const {
    for (const Option<T>& option : options_)
      if (option.name == name) return &option;
    return nullptr;
  }
  auto begin() const { return options_.begin(); }
  auto end() const { return options_.end(); }

  // Throws Error, naming the policy, for a value out of range.
  void check(std::string_view policy, const T& options) const {
    for (const Option<T>& option : options_)
      if (option.check) option.check(policy, options);
  }

  // ":name=value,…" of all that differ from `base`; `first` is what stands before the first of them.
  std::string text(const T& options, const T& base, char first = ':') const {
    std::string text;
    for (const Option<T>& option : options_) {
      const std::string value = option.write(options);
      if (value.empty() || value == option.write(base)) continue;
      text += (text.empty() ? first : ',') + std::string(option.name) + "=" + value;
    }
    return text;
  }

  std::vector<PolicyOption> documented() const {
    std::vector<PolicyOption> list;
    for (const Option<T>& option : options_) list.push_back({option.name, option.write(T()), option.meaning});
    return list;
  }

 private:
  std::vector<Option<T>> options_;
};

// The options that every policy takes.
const OptionSet<CommonOptions>& common_option_set();

// Throws Error for an option that is given twice or is not `known`.
void check_names(std::string_view policy, std::span<const GivenOption> given,
                 const std::vector<std::string_view>& known);
// Throws Error: POLICY: NAME=VALUE `wrong`.
[[noreturn]] void refuse_option(std::string_view policy, const GivenOption& given, const std::string& wrong);

template <typename T>
constexpr bool kHasCommon = requires(T options) {
  options.common;
};

// Options in the order of the set, and where T has `common`, those that every policy takes. Ranges are not looked at.
// Throws Error naming policy and option.
template <typename T>
T read_options(std::string_view policy, std::span<const GivenOption> given, const OptionSet<T>& set,
               const PolicyFiles* files = nullptr) {
  const ReadContext context{policy, given, files};
  T options;
  std::vector<std::string_view> known;
  const auto read_all = [&](auto& target, const auto& of) {
    for (const auto& option : of)
      for (const GivenOption& one : given) {
        if (one.name != option.name) continue;
        if (const std::string wrong = option.read(target, one.value, context); !wrong.empty())
          refuse_option(policy, one, wrong);
      }
  };
  for (const Option<T>& option : set) known.push_back(option.name);
  if constexpr (kHasCommon<T>)
    for (const Option<CommonOptions>& option : common_option_set()) known.push_back(option.name);
  check_names(policy, given, known);
  read_all(options, set);
  if constexpr (kHasCommon<T>) read_all(options.common, common_option_set());
  return options;
}

// The same with ranges checked: all that a policy of one's own has to ask.
template <typename T>
T options_of(std::string_view policy, std::span<const GivenOption> given, const OptionSet<T>& set) {
  T options = read_options(policy, given, set);
  set.check(policy, options);
  if constexpr (kHasCommon<T>) common_option_set().check(policy, options.common);
  return options;
}

template <typename T>
std::string spec_of(std::string_view name, const OptionSet<T>& set, const T& options, const T& base = T()) {
  std::string text = std::string(name) + set.text(options, base);
  if constexpr (kHasCommon<T>)
    text += common_option_set().text(options.common, base.common, text.size() == name.size() ? ':' : ',');
  return text;
}

// ---- options that many policies have ----

template <typename T>
Option<T> keep_ratio(Amount T::*amount,
                     std::string_view meaning = "part that stays, a/b or a decimal; this or num_kept") {
  Option<T> option(
      "keep_ratio", [amount](auto& options) -> auto& { return (options.*amount).keep_ratio; }, meaning);
  option.check = [amount](std::string_view policy, const T& options) { check_amount(policy, options.*amount); };
  return option;
}
template <typename T>
Option<T> num_kept(Amount T::*amount, std::string_view meaning = "number that stays; this or keep_ratio") {
  Option<T> option(
      "num_kept", [amount](auto& options) -> auto& { return (options.*amount).num_kept; }, meaning);
  option.check = {};  // with keep_ratio
  return option;
}
template <typename T>
Option<T> row_breaks(bool T::*compete, std::string_view meaning =
                                           "pool: row breaks compete like patches; follow: each "
                                           "stays with its row") {
  return Option<T>("row_breaks", compete, {{"pool", true}, {"follow", false}}, meaning);
}

}  // namespace espalier
