// SPDX-License-Identifier: Apache-2.0
#include "cli/policy_options.h"

#include <CLI/App.hpp>

namespace espalier::cli {

void add_plugin_option(CLI::App& app, PluginOptions& options) {
  app.add_option("--policy-plugin", options.files,
                 "Shared object with a policy of your own, which --policy can then name (espalier/policy_plugin.h)")
      ->allow_extra_args(false)
      ->type_name("FILE");
}

std::vector<PolicyPlugin> load_plugins(const PluginOptions& options) {
  std::vector<PolicyPlugin> plugins;
  for (const std::string& file : options.files) plugins.push_back(PolicyPlugin::load(file));
  return plugins;
}

PolicyPtr read_policy(const PluginOptions& options, const std::string& spec) {
  return make_policy(spec, load_plugins(options));
}

}  // namespace espalier::cli
