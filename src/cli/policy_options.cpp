// SPDX-License-Identifier: Apache-2.0
#include "cli/policy_options.h"

#include <CLI/App.hpp>
#include <string_view>

#include "espalier/policy_plugin.h"

namespace espalier::cli {

void add_plugin_option(CLI::App& app, PluginOptions& options) {
  app.add_option("--policy-plugin", options.files,
                 "Shared object with a policy of your own, which --policy can then name (espalier/policy_plugin.h)")
      ->allow_extra_args(false)
      ->type_name("FILE");
}

PolicyPtr read_policy(const PluginOptions& options, const std::string& spec) {
  const std::string_view name = std::string_view(spec).substr(0, spec.find_first_of(": "));
  for (const std::string& file : options.files) {
    const PolicyPlugin plugin = PolicyPlugin::load(file);
    if (plugin.name() == name) return plugin.make(spec);
  }
  return make_policy(spec);
}

}  // namespace espalier::cli
