// SPDX-License-Identifier: Apache-2.0
#include "recording/replay.h"

#include <CLI/App.hpp>
#include <memory>
#include <string>

#include "cli/commands.h"
#include "cli/policy_options.h"
#include "cli/prompt_options.h"

namespace espalier::cli {

namespace {

struct ReplayOptions {
  std::string policy;
  PluginOptions plugins;
  ReplayFiles files;
};

ExitStatus replay(const ReplayOptions& options) {
  check_output_folder(options.files.out);
  espalier::replay(read_policy(options.plugins, options.policy), options.files);
  return kDone;
}

}  // namespace

Run add_replay(CLI::App& app) {
  const auto options = std::make_shared<ReplayOptions>();
  app.add_option("--policy", options->policy, "NAME or NAME:OPTION=VALUE,…; see espalier policies")
      ->required()
      ->type_name("SPEC");
  add_plugin_option(app, options->plugins);
  app.add_option("--signals", options->files.signals, "Tensors that espalier record wrote, or another program")
      ->required()
      ->type_name("FILE");
  app.add_option("--layout", options->files.layout, "Layout that belongs to them")->required()->type_name("FILE");
  app.add_option("--out", options->files.out, "Which tokens the policy keeps at each of its points, JSON")
      ->required()
      ->type_name("FILE");
  app.footer(
      "No model is loaded. A signal that the policy needs and that was not recorded is an error which names it.\n\n"
      "  espalier replay --policy catp:keep_ratio=2/9 --signals s.safetensors \\\n"
      "      --layout l.json --out kept.json");
  return [options] { return replay(*options); };
}

}  // namespace espalier::cli
