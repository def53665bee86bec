// SPDX-License-Identifier: Apache-2.0
// The table of built-in policies. A new one is a header, a file that ends with its row, and a name in this list.
#include <algorithm>
#include <iterator>
#include <vector>

#include "base/closest.h"
#include "base/error_text.h"
#include "espalier/error.h"
#include "espalier/policies/atp.h"
#include "espalier/policies/fitprune.h"
#include "espalier/policies/keepmask.h"
#include "espalier/policies/table.h"
#include "espalier/policies/vtw.h"
#include "espalier/policy_plugin.h"
#include "pruning/built_in.h"
#include "pruning/solved.h"

namespace espalier {

#define ESPALIER_POLICIES(X) \
  X(none)                    \
  X(random)                  \
  X(uniform)                 \
  X(vtw)                     \
  X(keepmask)                \
  X(fastv)                   \
  X(catp)                    \
  X(catp_plus)               \
  X(divprune)                \
  X(cdpruner)                \
  X(m3)                      \
  X(hired)                   \
  X(attention)               \
  X(pyramiddrop)             \
  X(dart)                    \
  X(plphp)                   \
  X(sparsevlm)               \
  X(fitprune)                \
  X(atp)                     \
  X(prumerge)                \
  X(prumerge_plus)           \
  X(visionzip)               \
  X(vispruner)               \
  X(hiprune)                 \
  X(scope)                   \
  X(persistence)             \
  X(visionpulse)             \
  X(resize)

#define ESPALIER_DECLARE(name) PolicyRow name##_row();
ESPALIER_POLICIES(ESPALIER_DECLARE)

namespace {

const std::vector<PolicyRow>& rows() {
#define ESPALIER_CALL(name) name##_row(),
  static const std::vector<PolicyRow> rows = {ESPALIER_POLICIES(ESPALIER_CALL)};
  return rows;
}

const PolicyRow& row_of(const PolicySpec& spec) {
  std::string list;
  std::vector<std::string_view> known;
  for (const PolicyRow& row : rows()) {
    if (row.entry.name == spec.name) return row;
    list += (list.empty() ? "" : ", ") + std::string(row.entry.name);
    known.push_back(row.entry.name);
  }
  throw Error("policy: there is no " + in_quotes(spec.name) + did_you_mean(spec.name, known) + "; there are " + list);
}

// As it was written.
std::string text_of(const PolicySpec& spec) {
  std::string text = spec.name;
  for (const auto& [name, value] : spec.options) text += (text == spec.name ? ":" : ",") + name + "=" + value;
  return text;
}

// Policies that take a ratio read none; and those that a caller reads files with may not outlive make_policy().
class NoFiles final : public PolicyFiles {
 public:
  AtpWeights atp_weights(const std::string& file) const override { refuse(file); }
  FitpruneRecipe fitprune_recipe(const std::string& file) const override { refuse(file); }
  KeptSets kept_sets(const std::string& file) const override { refuse(file); }
  VtwRecipe vtw_recipe(const std::string& file) const override { refuse(file); }

 private:
  [[noreturn]] static void refuse(const std::string& file) {
    throw Error(file + ": a policy with ttft or kv reads no files");
  }
};

bool takes_ratio(const PolicyEntry& entry) {
  return std::ranges::any_of(entry.options, [](const PolicyOption& o) { return o.name == "keep_ratio"; });
}

}  // namespace

std::span<const PolicyEntry> policy_table() {
  static const std::vector<PolicyEntry> entries = [] {
    std::vector<PolicyEntry> all;
    for (const PolicyRow& row : rows()) {
      PolicyEntry& entry = all.emplace_back(row.entry);
      if (takes_ratio(entry)) std::ranges::copy(target_options(), std::back_inserter(entry.options));
    }
    return all;
  }();
  return entries;
}

std::span<const PolicyOption> common_policy_options() {
  static const std::vector<PolicyOption> options = common_option_set().documented();
  return options;
}

PolicyPtr make_policy(std::string_view spec, const PolicyFiles& files) {
  return make_policy(spec, files, {});
}

PolicyPtr make_policy(std::string_view spec, const PolicyFiles& files, std::span<const PolicyPlugin> plugins) {
  struct Unsolved {
    Target target;
    size_t place;
    PolicySpec spec;
  };
  std::optional<Unsolved> unsolved;
  std::vector<PolicyPtr> policies;
  for (PolicySpec& one : parse_policy_spec(spec)) {
    const auto plugin = std::ranges::find(plugins, one.name, &PolicyPlugin::name);
    if (plugin != plugins.end()) {
      policies.push_back(plugin->make(text_of(one)));
      continue;
    }
    const PolicyRow& row = row_of(one);
    const std::optional<Target> target = takes_ratio(row.entry) ? take_target(one) : std::nullopt;
    if (target && unsolved) throw Error("pipeline: ttft and kv are of one policy; two have them");
    if (target) unsolved = Unsolved{*target, policies.size(), one};
    policies.push_back(target ? nullptr : row.make(one, files));
  }
  if (!unsolved) return chain(std::move(policies));
  const auto make = [policies = std::move(policies), unsolved = *unsolved](Fraction keep_ratio) {
    PolicySpec with_amount = unsolved.spec;
    with_amount.options.push_back({"keep_ratio", to_string(keep_ratio)});
    std::vector<PolicyPtr> all = policies;
    all[unsolved.place] = row_of(with_amount).make(with_amount, NoFiles());
    return chain(std::move(all));
  };
  return with_target(std::string(spec), unsolved->target, make);
}

bool acts_before(std::string_view policy, int layer, const ModelFacts& model) {
  if (layer > model.num_layers)
    throw Error(std::string(policy) + ": layer=" + std::to_string(layer) + ", but the model has " +
                std::to_string(model.num_layers) + " layers");
  return layer < model.num_layers;
}

void check_vision_layer(std::string_view policy, int layer, const ModelFacts& model) {
  if (!model.has_class_token) throw Error(std::string(policy) + ": the vision tower has no class token");
  if (layer < 0 || layer >= model.vision_layers)
    throw Error(std::string(policy) + ": vision layer " + std::to_string(layer) + ", but the tower has " +
                std::to_string(model.vision_layers));
}

std::string any_model(const ModelFacts&) {
  return {};
}

std::string needs_no_window(const ModelFacts& model) {
  return model.sliding_window > 0 ? "a cache with a sliding window cannot be pruned" : "";
}

std::string needs_class_token(const ModelFacts& model) {
  return model.has_class_token ? std::string() : "needs a vision tower with a class token, this one has none";
}

}  // namespace espalier
