// SPDX-License-Identifier: Apache-2.0
#include "eval/evaluate.h"

#include <CLI/App.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/output_file.h"
#include "cli/bundled_model.h"
#include "cli/commands.h"
#include "cli/interrupt.h"
#include "cli/json_output.h"
#include "cli/number_option.h"
#include "cli/policy_options.h"
#include "cli/prompt_options.h"
#include "cli/standard_output.h"
#include "cli/terminal_progress.h"
#include "espalier/error.h"
#include "eval/kept_answers.h"
#include "eval/report.h"
#include "runtime/engine_impl.h"
#include "runtime/result_json.h"

namespace espalier::cli {

namespace {

struct EvalArguments {
  ModelOptions model;
  PluginOptions plugins;
  std::vector<std::string> policies, suites;
  std::string difficulty = "hard";
  eval::EvalOptions eval;
  std::optional<int> side;
  bool has_curve = false, without_controls = false, resumes = false;
  JsonOutput json;
  std::filesystem::path answers, markdown, svg;
};

// What runs without options: a few minutes on two cores.
const std::vector<std::string> kUsualSuites = {"single",        "detail",         "bind/shape-2x1", "bind/colour-2x1",
                                               "bind/spot-2x1", "bind/shape-2x2", "bind/shape-4x1", "define"};

// The name of the bundled model that was trained on what these cells ask.
std::string bundled_model_for(const std::vector<synth::Cell>& cells) {
  const auto is_crowded = [](const synth::Cell& cell) {
    return std::ranges::find(synth::kCrowdedSuites, cell.suite) != synth::kCrowdedSuites.end();
  };
  const auto crowded = std::ranges::count_if(cells, is_crowded);
  if (crowded != 0 && crowded != std::ssize(cells))
    throw Error(
        "eval: --suite names cells of both bundled models: ask crowded, in-context and screens without the others");
  return crowded == 0 ? "demo" : "crowded";
}

// Where the attention of the layer before first tells tokens apart: after the first layer that reads pictures
// (README.md of models/demo and models/crowded; for catp their policy_defaults.json says so).
std::vector<std::string> usual_policies(const std::string& bundled) {
  const std::string layer = bundled == "demo" ? ",layer=3" : bundled == "crowded" ? ",layer=6" : "";
  return {"catp:keep_ratio=2/9", "fastv:keep_ratio=2/9" + layer, "random:keep_ratio=2/9", "oracle:keep_ratio=2/9"};
}

std::string command_of(const EvalArguments& arguments) {
  std::string text = "espalier eval";
  if (!arguments.model.model.empty()) text += " --model " + arguments.model.model.string();
  if (arguments.has_curve) text += " --curve";
  for (const std::string& policy : arguments.policies) text += " --policy " + policy;
  for (const std::string& suite : arguments.suites) text += " --suite " + suite;
  text += " --difficulty " + arguments.difficulty + " --seed " + std::to_string(arguments.eval.seed) + " --items " +
          std::to_string(arguments.eval.items);
  if (arguments.side) text += " --side " + std::to_string(*arguments.side);
  if (arguments.without_controls) text += " --no-controls";
  return text;
}

void add_policy(EvalArguments& arguments, const std::string& spec) {
  arguments.eval.policies.push_back(
      eval::eval_policy(spec, [plugins = arguments.plugins](const std::string& s) { return read_policy(plugins, s); }));
}

ExitStatus evaluate(EvalArguments arguments) {
  eval::EvalOptions& options = arguments.eval;
  const std::string command = command_of(arguments);
  options.cells = synth::select_cells(arguments.suites.empty() ? kUsualSuites : arguments.suites);
  const std::string bundled = arguments.model.model.empty() ? bundled_model_for(options.cells) : "";
  if (!bundled.empty()) arguments.model.model = bundled_model(bundled);
  options.difficulty = synth::difficulty_named(arguments.difficulty);
  options.with_controls = !arguments.without_controls;
  if (arguments.policies.empty() && !arguments.has_curve) arguments.policies = usual_policies(bundled);
  for (const std::string& spec : arguments.policies) add_policy(arguments, spec);
  check_outputs(arguments.model, {}, {arguments.json.file(), arguments.answers, arguments.markdown, arguments.svg});
  catch_interrupts();
  TerminalProgress progress;
  const Engine engine = load_engine(arguments.model, progress);
  if (arguments.has_curve)
    for (int layer = 1; layer < engine.impl().model.facts.num_layers; ++layer)
      add_policy(arguments, "vtw:layer=" + std::to_string(layer));
  options.side = arguments.side.value_or(eval::side_for(engine));
  const nlohmann::ordered_json head = json_head(engine);
  const eval::AnsweredRun run{.model = head["model"].get<std::string>(),
                              .dtype = head["dtype"].get<std::string>(),
                              .difficulty = arguments.difficulty,
                              .seed = options.seed,
                              .side = options.side};
  std::optional<OutputFile> answers;
  std::optional<eval::KeptAnswers> kept;
  if (arguments.resumes) {
    kept.emplace(arguments.answers, run);
    options.known = kept->found();
  } else if (!arguments.answers.empty()) {
    answers.emplace(arguments.answers);
  }
  eval::EvalProgress watching{.show = [&](int64_t done, int64_t total) { progress.show("eval", done, total); },
                              .should_cancel = [] { return interrupted(); }};
  if (answers) watching.on_answer = [&](const eval::EvalAnswer& a) { answers->write(to_json_line(run, a)); };
  if (kept) watching.on_answer = [&](const eval::EvalAnswer& a) { kept->add(a); };
  const eval::EvalResult result = eval::evaluate(engine, options, watching);
  progress.clear();
  if (answers) answers->commit();
  if (!result.is_complete)
    std::fprintf(stderr, "espalier: interrupted; what was finished is kept (the same command %s)\n",
                 kept ? "goes on" : "starts anew");
  if (result.cells.empty()) return kInterrupted;
  const eval::EvalContext context{
      .difficulty = arguments.difficulty, .seed = options.seed, .items = options.items, .command = command};
  const std::string markdown = to_markdown(result, context);
  if (!arguments.markdown.empty()) write_text(arguments.markdown, markdown);
  if (!arguments.svg.empty()) write_text(arguments.svg, to_svg(result));
  arguments.json.write(to_json(result, context, head));
  if (!arguments.json.replaces_text()) print(markdown);
  return result.is_complete ? kDone : kInterrupted;
}

}  // namespace

Run add_eval(CLI::App& app) {
  const auto arguments = std::make_shared<EvalArguments>();
  add_model_options(app, arguments->model);
  add_plugin_option(app, arguments->plugins);
  app.add_option("--policy", arguments->policies,
                 "Policy to compare with the unpruned model; may be given several times. random without a seed is five "
                 "draws per item, oracle:keep_ratio=R keeps the patches of what is asked about, with knows=scene those "
                 "of all objects (catp, fastv, random and oracle at 2/9; on a bundled model the first two act after "
                 "the first layer that reads pictures)")
      ->type_name("SPEC");
  app.add_option("--suite", arguments->suites,
                 "single, detail, bind, define or a cell such as bind/shape-2x1; or crowded, in-context, screens, for "
                 "models that know their words (without --model the second bundled one); may be given several times "
                 "(all of single, detail and define, and some of bind)")
      ->type_name("NAME");
  add_integer(
      app, "--seed", {}, [=](int64_t n) { arguments->eval.seed = static_cast<uint64_t>(n); },
      "Which list of test items; published numbers use 0 (0)");
  add_integer(
      app, "--items", {1, 1'000'000}, [=](int64_t n) { arguments->eval.items = n; }, "Items per cell (200)");
  app.add_option("--difficulty", arguments->difficulty,
                 "plain, clutter (dull strokes), distractor (a grey object), hard (both) (hard)")
      ->type_name("NAME");
  add_integer(
      app, "--side", {28, 1344}, [=](int64_t n) { arguments->side = static_cast<int>(n); },
      "Pixels along a side of the pictures (what the model takes)");
  app.add_flag("--curve", arguments->has_curve,
               "Also with all image tokens dropped before layer 1, 2, …: where the model reads its images");
  app.add_flag("--no-controls", arguments->without_controls,
               "Leave out the unpruned model without images, with shuffled words, and without examples");
  arguments->json.add_option(app, "one object with the tables' numbers");
  CLI::Option* answers = app.add_option(
      "--answers", arguments->answers,
      "Also write every answer to this file, one JSON line each: item, policy, answer, expected, right, tokens");
  answers->type_name("FILE");
  app.add_flag(
         "--resume", arguments->resumes,
         "Keep answers in the file of --answers as they come, and ask only what it lacks: after Ctrl-C or a crash "
         "the same command goes on")
      ->needs(answers);
  app.add_option("--markdown", arguments->markdown, "Also write the tables to this file")->type_name("FILE");
  app.add_option("--svg", arguments->svg, "Also write a plot: accuracy over image tokens")->type_name("FILE");
  app.footer(
      "Every policy answers the same items, which `espalier synth` writes out. Accuracy is exact match of the greedy\n"
      "answer. Without options it takes a few minutes on two cores. Ctrl-C ends it with the tables of what is "
      "finished.\n\n"
      "  espalier eval --policy catp:keep_ratio=1/9 --policy random:keep_ratio=1/9 \\\n"
      "      --suite bind --items 500\n"
      "  espalier eval --curve --suite single --suite detail --svg curve.svg");
  return [arguments] { return evaluate(*arguments); };
}

}  // namespace espalier::cli
