// SPDX-License-Identifier: Apache-2.0
// A policy of one's own in a shared object, for programs that take policies by name: `--policy-plugin F.so` of the
// command line, or PolicyPlugin::load in a program. A program that has the class itself needs none of this: it sets
// Request::custom.
//
// The plugin is one file:
//   class Mine final : public espalier::PruningPolicy { … };
//   ESPALIER_POLICY_PLUGIN("mine", [](std::span<const espalier::GivenOption> options) -> espalier::PolicyPtr { … })
//   ESPALIER_POLICY_OPTIONS(kOptions)   // may be left out: what `espalier policies` says of its options
// built as a module against the same Espalier and libtorch (examples/keep_centre_policy.cpp).
#pragma once

#include <torch/headeronly/version.h>

#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "espalier/policies/options.h"
#include "espalier/pruning.h"

// Raised whenever pruning.h or token_layout.h changes in a way that a built plugin would not survive.
#define ESPALIER_POLICY_INTERFACE "4"

namespace espalier {

using PluginOption = GivenOption;

// Makes the policy. Throws Error for an option that it does not know or a value out of range (options_of does).
using PluginFactory = PolicyPtr (*)(std::span<const PluginOption> options);

// What a plugin and the library that loads it must have in common: neither has a binary interface that outlives it.
#define ESPALIER_PLUGIN_BUILT_FOR "policy interface " ESPALIER_POLICY_INTERFACE ", libtorch " TORCH_VERSION

// A shared object that has a policy, loaded. Copies share it; safe to use from several threads.
class PolicyPlugin {
 public:
  // Throws Error when the file cannot be loaded, is no plugin, or was built for another interface or libtorch: it is
  // then not asked anything more.
  static PolicyPlugin load(const std::filesystem::path& file);

  std::string_view name() const;
  const std::filesystem::path& file() const;
  // Its own, beside which it may take the common ones; none where the plugin says nothing of them. They point into the
  // shared object.
  std::vector<PolicyOption> options() const;
  // `name` or `name:option=value,…`. The shared object stays loaded as long as a policy of it lives. Throws Error for
  // another name, and what the plugin throws.
  PolicyPtr make(std::string_view spec) const;

 private:
  struct Library;
  explicit PolicyPlugin(std::shared_ptr<const Library> library) : library_(std::move(library)) {}
  std::shared_ptr<const Library> library_;
};

// make_policy with policies of plugins beside those of the table, also as parts of pipelines; a plugin's name goes
// before one of the table.
PolicyPtr make_policy(std::string_view spec, std::span<const PolicyPlugin> plugins);
PolicyPtr make_policy(std::string_view spec, const PolicyFiles& files, std::span<const PolicyPlugin> plugins);

}  // namespace espalier

// Exports a policy. Once in a shared object.
#define ESPALIER_POLICY_PLUGIN(NAME, ...)                                                                            \
  extern "C" __attribute__((visibility("default"))) const char* espalier_plugin_built_for() {                        \
    return ESPALIER_PLUGIN_BUILT_FOR;                                                                                \
  }                                                                                                                  \
  extern "C" __attribute__((visibility("default"))) const char* espalier_plugin_name() {                             \
    return NAME;                                                                                                     \
  }                                                                                                                  \
  extern "C" __attribute__((visibility("default"))) void espalier_plugin_factory(espalier::PluginFactory* factory) { \
    *factory = __VA_ARGS__;                                                                                          \
  }

// Says what the options of the policy are, from their OptionSet.
#define ESPALIER_POLICY_OPTIONS(SET)                                              \
  extern "C" __attribute__((visibility("default"))) void espalier_plugin_options( \
      std::vector<espalier::PolicyOption>* options) {                             \
    *options = (SET).documented();                                                \
  }
