// SPDX-License-Identifier: Apache-2.0
#include "cli/policy_options.h"

#include <CLI/App.hpp>
#include <vector>

#include "espalier/policy_plugin.h"

namespace espalier::cli {

void add_plugin_option(CLI::App& app, PluginOptions& options) {
  app.add_option("--policy-plugin", options.files,
                 "Shared object with a policy of your own, which --policy can then name (espalier/policy_plugin.h)")
      ->allow_extra_args(false)
      ->type_name("FILE");
}

PolicyPtr read_policy(const PluginOptions& options, const std::string& spec) {
  std::vector<PolicyPlugin> plugins;
  for (const std::string& file : options.files) plugins.push_back(PolicyPlugin::load(file));
  return make_policy(spec, plugins);
}

}  // namespace espalier::cli
