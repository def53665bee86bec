// SPDX-License-Identifier: Apache-2.0
// A built-in policy is its options and a function from them to steps; this makes a PruningPolicy and a row of the table
// of it. A user's own policy derives from PruningPolicy and needs none of this.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/error_text.h"
#include "espalier/error.h"
#include "espalier/policies/options.h"
#include "espalier/policies/table.h"
#include "espalier/pruning.h"
#include "pruning/policy_spec.h"

namespace espalier {

template <typename Options>
struct Method {
  std::string_view name;
  OptionSet<Options> options;
  std::vector<Step> (*steps)(const Options&, const ModelFacts&, const PromptLayout&);
  void (*check)(const Options&) = nullptr;  // what the ranges of single options do not say
  ImageShape (*wanted_shape)(const Options&, const ImageShape&) = nullptr;
  bool row_breaks_compete = false;                // where the options do not say
  Options (*defaults)(const Options&) = nullptr;  // what spec() leaves out, where that is not Options()
};

template <typename Options>
PolicyPtr make(const Method<Options>& method, const Options& options);

template <typename Options>
class BuiltIn final : public PruningPolicy {
 public:
  // Throws Error for options that make no policy.
  BuiltIn(const Method<Options>& method, Options options) : method_(method), options_(std::move(options)) {
    method.options.check(method.name, options_);
    common_option_set().check(method.name, options_.common);
    if (method.check) method.check(options_);
  }

  std::string spec() const override {
    return spec_of(method_.name, method_.options, options_, method_.defaults ? method_.defaults(options_) : Options());
  }
  CommonOptions common() const override { return options_.common; }
  bool row_breaks_compete() const override {
    if constexpr (requires { options_.row_breaks_compete; })
      return options_.row_breaks_compete;
    else
      return method_.row_breaks_compete;
  }
  ImageShape wanted_shape(const ModelFacts&, const ImageShape& shape) const override {
    return method_.wanted_shape ? method_.wanted_shape(options_, shape) : shape;
  }
  std::vector<Step> steps(const ModelFacts& model, const PromptLayout& prompt) const override {
    return method_.steps(options_, model, prompt);
  }
  PolicyPtr for_model(const ModelFacts& model) const override {
    Options options = options_;
    bool is_other = false;
    for (const PolicyDefault& set : model.policy_defaults) {
      const Option<Options>* option = set.policy == method_.name ? method_.options.find(set.option) : nullptr;
      if (!option || !option->write(options).empty()) continue;
      is_other = true;
      if (const std::string wrong = option->read(options, set.value, {set.policy, {}}); !wrong.empty())
        throw Error("policy_defaults.json: " + set.policy + ": " + set.option + "=" + shown(set.value) + " " + wrong);
    }
    return is_other ? make(method_, options) : nullptr;
  }

 private:
  const Method<Options>& method_;  // of the program
  Options options_;
};

template <typename Options>
PolicyPtr make(const Method<Options>& method, const Options& options) {
  return std::make_shared<BuiltIn<Options>>(method, options);
}

// A row of the table; each policy's file ends with its own, policies.cpp lists them.
struct PolicyRow {
  PolicyEntry entry;
  std::function<PolicyPtr(const PolicySpec&, const PolicyFiles&)> make;
};

// `entry` without name and options, which are the method's.
template <typename Options>
PolicyRow row(const Method<Options>& method, PolicyEntry entry) {
  entry.name = method.name;
  entry.options = method.options.documented();
  return {std::move(entry), [&method](const PolicySpec& spec, const PolicyFiles& files) {
            return make(method, read_options(spec.name, spec.options, method.options, &files));
          }};
}

// ---- what many policies say ----

inline const Words<Budget::Pool> kPoolWords = {{"request", Budget::Pool::kRequest}, {"image", Budget::Pool::kImage}};

inline const Words<bool> kYesNo = {{"yes", true}, {"no", false}};

inline Verdict by_first_signal(const TokenLayout&, std::span<const at::Tensor> signals) {
  return {.scores = signals[0]};
}

// False for the model's depth, before which nothing runs. Throws Error for more.
bool acts_before(std::string_view policy, int layer, const ModelFacts& model);
// Throws Error unless the tower has the layer, and a class token.
void check_vision_layer(std::string_view policy, int layer, const ModelFacts& model);

// Reasons why a model cannot run a policy.
std::string any_model(const ModelFacts& model);
std::string needs_class_token(const ModelFacts& model);
std::string needs_no_window(const ModelFacts& model);
template <int layers>
std::string needs_layers(const ModelFacts& model) {
  if (model.num_layers >= layers) return {};
  return "needs " + std::to_string(layers) + " decoder layers, the model has " + std::to_string(model.num_layers);
}

}  // namespace espalier
