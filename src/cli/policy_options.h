// SPDX-License-Identifier: Apache-2.0
// Policies that a command line names: the built-in ones, and those of shared objects.
#pragma once

#include <string>
#include <vector>

#include "espalier/policy_plugin.h"
#include "espalier/pruning.h"

namespace CLI {
class App;
}

namespace espalier::cli {

struct PluginOptions {
  std::vector<std::string> files;
};
void add_plugin_option(CLI::App& app, PluginOptions& options);

// Throws Error where a file is no plugin.
std::vector<PolicyPlugin> load_plugins(const PluginOptions& options);

// Throws Error for what neither a plugin nor make_policy() knows. Of two plugins with one name the first is taken; a
// plugin's name goes before a built-in one.
PolicyPtr read_policy(const PluginOptions& options, const std::string& spec);

}  // namespace espalier::cli
