// SPDX-License-Identifier: Apache-2.0
// The table of built-in policies. A new one is a header, a file that ends with its row, and a name in this list.
#include <algorithm>
#include <vector>

#include "base/closest.h"
#include "base/error_text.h"
#include "espalier/error.h"
#include "espalier/policies/table.h"
#include "espalier/policy_plugin.h"
#include "pruning/built_in.h"

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
  X(resize)

#define ESPALIER_DECLARE(name) PolicyRow name##_row();
ESPALIER_POLICIES(ESPALIER_DECLARE)

namespace {

const std::vector<PolicyRow>& rows() {
#define ESPALIER_CALL(name) name##_row(),
  static const std::vector<PolicyRow> rows = {ESPALIER_POLICIES(ESPALIER_CALL)};
  return rows;
}

PolicyPtr make_one(const PolicySpec& spec, const PolicyFiles& files) {
  std::string list;
  std::vector<std::string_view> known;
  for (const PolicyRow& row : rows()) {
    if (row.entry.name == spec.name) return row.make(spec, files);
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

}  // namespace

std::span<const PolicyEntry> policy_table() {
  static const std::vector<PolicyEntry> entries = [] {
    std::vector<PolicyEntry> all;
    for (const PolicyRow& row : rows()) all.push_back(row.entry);
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
  std::vector<PolicyPtr> policies;
  for (const PolicySpec& one : parse_policy_spec(spec)) {
    const auto plugin = std::ranges::find(plugins, one.name, &PolicyPlugin::name);
    policies.push_back(plugin != plugins.end() ? plugin->make(text_of(one)) : make_one(one, files));
  }
  return chain(std::move(policies));
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

std::string needs_class_token(const ModelFacts& model) {
  return model.has_class_token ? std::string() : "needs a vision tower with a class token, this one has none";
}

}  // namespace espalier
