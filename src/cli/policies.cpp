// SPDX-License-Identifier: Apache-2.0
#include "espalier/policies/table.h"

#include <CLI/App.hpp>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/json_file.h"
#include "cli/commands.h"
#include "cli/json_output.h"
#include "cli/policy_options.h"
#include "cli/standard_output.h"
#include "families/families.h"
#include "runtime/loaded_model.h"
#include "runtime/result_json.h"

namespace espalier::cli {

namespace {

using Json = nlohmann::ordered_json;

struct PoliciesOptions {
  std::filesystem::path model;  // empty: nothing is said about a model
  PluginOptions plugins;
  JsonOutput json;
};

// Reads config.json and policy_defaults.json alone: weights say nothing about what a policy may ask for.
std::optional<ModelFacts> facts_of_folder(const std::filesystem::path& folder) {
  if (folder.empty()) return std::nullopt;
  const std::filesystem::path file = folder / "config.json";
  return facts_of(parse_config(read_text_file(file), file.string()), folder);
}

Json options_json(std::span<const PolicyOption> options) {
  Json list = Json::array();
  for (const PolicyOption& option : options)
    list.push_back({{"name", option.name}, {"default", option.default_value}, {"meaning", option.meaning}});
  return list;
}

Json policy_json(const PolicyEntry& entry, const std::optional<ModelFacts>& facts) {
  Json sites = Json::array();
  for (const Site site : entry.sites) sites.push_back(name_of(site));
  Json json = {{"name", entry.name}, {"paper", entry.paper}, {"summary", entry.summary},
               {"sites", sites},     {"needs", entry.needs}, {"options", options_json(entry.options)}};
  if (facts) {
    const std::string refusal = entry.refusal(*facts);
    json["runs"] = refusal.empty();
    for (const PolicyDefault& set : facts->policy_defaults)
      if (set.policy == entry.name) json["defaults_of_model"][set.option] = set.value;
    if (!refusal.empty()) json["refusal"] = refusal;
  }
  return json;
}

std::string json_text(const std::optional<ModelFacts>& facts, std::span<const PolicyPlugin> plugins) {
  Json policies = Json::array();
  for (const PolicyEntry& entry : policy_table()) policies.push_back(policy_json(entry, facts));
  for (const PolicyPlugin& plugin : plugins)
    policies.push_back(
        {{"name", plugin.name()}, {"plugin", plugin.file().string()}, {"options", options_json(plugin.options())}});
  Json json = json_head();
  json["policies"] = policies;
  json["common_options"] = options_json(common_policy_options());
  return to_line(json) + "\n";
}

std::string options_text(std::span<const PolicyOption> options) {
  std::string text;
  for (const PolicyOption& option : options) {
    std::string name(option.name);
    if (!option.default_value.empty()) name += "=" + std::string(option.default_value);
    name.resize(std::max<size_t>(name.size() + 2, 26), ' ');
    text += "      " + name + std::string(option.meaning) + "\n";
  }
  return text;
}

std::string policy_text(const PolicyEntry& entry, const std::optional<ModelFacts>& facts) {
  std::string text = std::string(entry.name) + "\n    " + std::string(entry.summary) + "\n";
  if (!entry.paper.empty()) text += "    paper: " + std::string(entry.paper) + "\n";
  if (!entry.sites.empty()) {
    text += "    acts at:";
    for (const Site site : entry.sites) text += " " + std::string(name_of(site));
    text += "\n";
  }
  if (!entry.needs.empty()) text += "    needs: " + std::string(entry.needs) + "\n";
  if (facts) {
    for (const PolicyDefault& set : facts->policy_defaults)
      if (set.policy == entry.name) text += "    on this model: " + set.option + "=" + set.value + "\n";
    const std::string refusal = entry.refusal(*facts);
    text += refusal.empty() ? "    runs on this model\n" : "    not on this model: " + refusal + "\n";
  }
  if (!entry.options.empty()) text += "    options:\n" + options_text(entry.options);
  return text + "\n";
}

ExitStatus policies(const PoliciesOptions& options) {
  const std::optional<ModelFacts> facts = facts_of_folder(options.model);
  const std::vector<PolicyPlugin> plugins = load_plugins(options.plugins);
  options.json.write(json_text(facts, plugins));
  if (options.json.replaces_text()) return kDone;
  std::string text;
  for (const PolicyEntry& entry : policy_table()) text += policy_text(entry, facts);
  for (const PolicyPlugin& plugin : plugins) {
    text += std::string(plugin.name()) + "\n    of the plugin " + plugin.file().string() + "\n";
    if (!plugin.options().empty()) text += "    options:\n" + options_text(plugin.options());
    text += "\n";
  }
  print(text + "Every policy also takes:\n" + options_text(common_policy_options()));
  return kDone;
}

}  // namespace

Run add_policies(CLI::App& app) {
  const auto options = std::make_shared<PoliciesOptions>();
  app.add_option("--model", options->model, "Also say which policies this model can run")->type_name("DIR");
  add_plugin_option(app, options->plugins);
  options->json.add_option(app, "one object");
  app.footer(
      "A policy is written NAME or NAME:OPTION=VALUE,OPTION=VALUE. Amounts are what is kept: keep_ratio=2/9 or "
      "num_kept=64.\n\n"
      "  espalier policies --model llava-1.5-7b-hf");
  return [options] { return policies(*options); };
}

}  // namespace espalier::cli
