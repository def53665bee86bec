// SPDX-License-Identifier: Apache-2.0
#include <CLI/App.hpp>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "base/output_file.h"
#include "cli/commands.h"
#include "cli/interrupt.h"
#include "cli/number_option.h"
#include "cli/prompt_options.h"
#include "cli/terminal_progress.h"
#include "espalier/inspect.h"
#include "text/conversations.h"

namespace espalier::cli {

namespace {

struct InspectOptions {
  ModelOptions model;
  PromptOptions prompt;
  std::vector<std::string> policies;
  std::optional<std::string> answer;
  int64_t max_new_tokens = 32;
  std::filesystem::path out;
};

// The last turn of the assistant, which is then no part of the question.
std::optional<std::string> take_last_answer(Prompt& prompt) {
  Chat* chat = std::get_if<Chat>(&prompt);
  if (!chat || chat->messages.empty() || chat->messages.back().role != "assistant") return std::nullopt;
  std::string answer;
  for (const Part& part : chat->messages.back().content)
    if (const auto* text = std::get_if<TextPart>(&part)) answer += text->text;
  *chat = without_last_answer(std::move(*chat));
  return answer;
}

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
  Prompt prompt = read_prompt(options.prompt);
  const std::optional<std::string> told = take_last_answer(prompt);
  for (Request& request : requests) request.prompt = prompt;
  catch_interrupts();
  TerminalProgress progress;
  const Engine engine = load_engine(options.model, progress);
  const std::optional<std::string> page =
      espalier::inspect(engine, requests, watch(progress), options.answer ? options.answer : told);
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
  app.add_option_function<std::string>(
         "--answer", [options](const std::string& text) { options->answer = text; },
         "The right answer, to stand beside the others; without it the last turn, where that is the assistant's")
      ->type_name("TEXT");
  app.add_option("--out", options->out, "HTML page to write; it needs no other file and no network")
      ->required()
      ->type_name("FILE");
  app.footer(
      "Answers are greedy. The page shows each picture with the tokens kept and dropped at every point, their scores,\n"
      "budgets by picture and layer, and position ids.\n\n"
      "  espalier inspect --chat messages.json --policy catp:keep_ratio=2/9 \\\n"
      "      --policy fastv:keep_ratio=2/9 --out kept.html");
  return [options] { return inspect(*options); };
}

}  // namespace espalier::cli
