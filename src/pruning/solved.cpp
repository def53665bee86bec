// SPDX-License-Identifier: Apache-2.0
#include "pruning/solved.h"

#include <array>
#include <charconv>
#include <cmath>
#include <utility>

#include "base/error_text.h"
#include "espalier/error.h"

namespace espalier {

namespace {

struct Unit {
  std::string_view name;
  double size;
};
// The largest first: what is written takes the first that divides it.
constexpr std::array<Unit, 2> kTimes = {{{"s", 1000}, {"ms", 1}}};
constexpr std::array<Unit, 7> kBytes = {
    {{"GiB", 1 << 30}, {"GB", 1e9}, {"MiB", 1 << 20}, {"MB", 1e6}, {"KiB", 1 << 10}, {"kB", 1e3}, {"B", 1}}};

constexpr double kMost = 1e12;  // ms are 31 years, bytes a TB: products of them stay far from any type's limits

// The value in the smallest unit; nothing when the text is not a number above 0 with a unit.
std::optional<double> parse(std::string_view text, std::span<const Unit> units) {
  double value = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  const std::string_view unit = text.substr(static_cast<size_t>(end - text.data()));
  if (code != std::errc()) return std::nullopt;
  for (const Unit& u : units) {
    const double scaled = value * u.size;
    if (u.name == unit && scaled > 0 && scaled <= kMost) return scaled;
  }
  return std::nullopt;
}

std::string shown_in(double value, std::span<const Unit> units) {
  const Unit* unit = &units.back();
  for (const Unit& u : units)
    if (std::fmod(value, u.size) == 0) {
      unit = &u;
      break;
    }
  std::array<char, 32> digits;
  const double scaled = value / unit->size;
  return std::string(digits.data(), std::to_chars(digits.data(), digits.data() + digits.size(), scaled).ptr) +
         std::string(unit->name);
}

class WithTarget final : public PruningPolicy {
 public:
  WithTarget(std::string spec, const Target& target, std::function<PolicyPtr(Fraction)> make)
      : spec_(std::move(spec)), open_{target, std::move(make)}, whole_(open_.at({1, 1})) {}

  std::string spec() const override { return spec_; }
  CommonOptions common() const override { return whole_->common(); }
  bool row_breaks_compete() const override { return whole_->row_breaks_compete(); }
  std::vector<Step> steps(const ModelFacts&, const PromptLayout&) const override {
    throw Error(spec_ +
                ": only a request of an engine has costs to solve an amount from; keep_ratio or num_kept is "
                "needed here");
  }
  PolicyPtr for_model(const ModelFacts& model) const override {
    if (!whole_->for_model(model)) return nullptr;
    return with_target(spec_, open_.target,
                       [at = open_.at, model](Fraction ratio) { return espalier::for_model(at(ratio), model); });
  }
  const OpenAmount* open_amount() const override { return &open_; }

 private:
  std::string spec_;
  OpenAmount open_;
  PolicyPtr whole_;
};

}  // namespace

std::string to_string(const Target& target) {
  std::string text;
  if (target.ttft_ms) text += "ttft=" + shown_in(*target.ttft_ms, kTimes);
  if (target.kv_bytes)
    text += (text.empty() ? "kv=" : ",kv=") + shown_in(static_cast<double>(*target.kv_bytes), kBytes);
  return text;
}

std::vector<PolicyOption> target_options() {
  return {{"ttft", "", "in place of an amount: time to the first token, 250ms or 1.5s; needs espalier calibrate"},
          {"kv", "", "in place of an amount: keys and values of prompt and answer, 64MB or 1GiB"}};
}

std::optional<Target> take_target(PolicySpec& spec) {
  Target target;
  for (const auto& [name, text] : spec.options) {
    const std::string wrong = spec.name + ": " + name + "=" + shown(text) + " is not ";
    if (name == "ttft") {
      if (target.ttft_ms) throw Error(spec.name + ": option ttft is given twice");
      target.ttft_ms = parse(text, kTimes);
      if (!target.ttft_ms) throw Error(wrong + "a time above 0 with its unit, ms or s");
    } else if (name == "kv") {
      if (target.kv_bytes) throw Error(spec.name + ": option kv is given twice");
      const std::optional<double> bytes = parse(text, kBytes);
      if (!bytes || *bytes < 1) throw Error(wrong + "1 byte or more with the unit: B, kB, MB, GB, KiB, MiB or GiB");
      target.kv_bytes = static_cast<int64_t>(*bytes);
    }
  }
  if (!target.ttft_ms && !target.kv_bytes) return std::nullopt;
  std::erase_if(spec.options, [](const auto& option) { return option.name == "ttft" || option.name == "kv"; });
  for (const auto& [name, text] : spec.options)
    if (name == "keep_ratio" || name == "num_kept")
      throw Error(spec.name + ": give " + to_string(target) + " or " + name + ", not both");
  return target;
}

PolicyPtr with_target(std::string spec, const Target& target, std::function<PolicyPtr(Fraction)> make) {
  return std::make_shared<WithTarget>(std::move(spec), target, std::move(make));
}

std::optional<Target> target_of(const PruningPolicy& policy) {
  const OpenAmount* open = policy.open_amount();
  return open ? std::optional(open->target) : std::nullopt;
}

PolicyPtr at_ratio(const PruningPolicy& policy, Fraction keep_ratio) {
  const OpenAmount* open = policy.open_amount();
  if (!open) throw Error(policy.spec() + ": has no target to solve an amount for");
  return open->at(keep_ratio);
}

}  // namespace espalier
