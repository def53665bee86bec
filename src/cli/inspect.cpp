// SPDX-License-Identifier: Apache-2.0
#include <CLI/App.hpp>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/output_file.h"
#include "cli/commands.h"
#include "cli/interrupt.h"
#include "cli/number_option.h"
#include "cli/prompt_options.h"
#include "cli/terminal_progress.h"
#include "espalier/inspect.h"

namespace espalier::cli {

namespace {

struct InspectOptions {
  ModelOptions model;
  PromptOptions prompt;
  std::vector<std::string> policies;
  int64_t max_new_tokens = 32;
  std::filesystem::path out;
};

ExitStatus inspect(const InspectOptions& options) {
  check_outputs(options.model, options.prompt, {options.out});
  std::vector<Request> requests;  // policies are checked before any work
  for (const std::string& spec : options.policies) {
    Request& request = requests.emplace_back();
    request.policy = spec;
    request.custom = read_policy(options.prompt.plugins, spec);
    request.options.max_new_tokens = options.max_new_tokens;
    request.options.greedy = true;
  }
  const Prompt prompt = read_prompt(options.prompt);
  for (Request& request : requests) request.prompt = prompt;
  catch_interrupts();
  TerminalProgress progress;
  const Engine engine = load_engine(options.model, progress);
  const std::optional<std::string> page = espalier::inspect(engine, requests, watch(progress));
  progress.clear();
  if (!page) return kInterrupted;
  OutputFile file(options.out);
  file.write(*page);
  file.commit();
  std::fprintf(stderr, "wrote %s\n", options.out.c_str());
  return kDone;
}

}  // namespace

Run add_inspect(CLI::App& app) {
  const auto options = std::make_shared<InspectOptions>();
  add_model_options(app, options->model);
  add_prompt_options(app, options->prompt);
  app.add_option("--policy", options->policies,
                 "Which visual tokens to drop; several are shown side by side (see espalier policies)")
      ->required()
      ->allow_extra_args(false)
      ->type_name("SPEC");
  add_plugin_option(app, options->prompt.plugins);
  add_integer(
      app, "--max-new-tokens", {0, 1'000'000'000}, [options](int64_t n) { options->max_new_tokens = n; },
      "Longest answer, in tokens (32)");
  app.add_option("--out", options->out, "HTML page to write; it needs no other file and no network")
      ->required()
      ->type_name("FILE");
  app.footer(
      "Answers are greedy. The page shows each picture with the tokens kept and dropped at every point, their scores,\n"
      "budgets by picture and layer, and position ids.\n\n"
      "  espalier inspect --chat messages.json --policy catp:keep_ratio=2/9 --policy fastv:keep_ratio=2/9 --out "
      "kept.html");
  return [options] { return inspect(*options); };
}

}  // namespace espalier::cli
