// SPDX-License-Identifier: Apache-2.0
// `espalier train-demo`: the bundled model or a larger one from nothing, stage by stage; one line per evaluation, a bar
// on a terminal.
#include <CLI/App.hpp>
#include <CLI/Validators.hpp>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

#include "cli/commands.h"
#include "cli/interrupt.h"
#include "cli/number_option.h"
#include "cli/terminal_progress.h"
#include "espalier/training.h"

namespace espalier::cli {

namespace {

void print_evaluation(const TrainingUpdate& update) {
  std::printf("%-14s step %6lld ", update.stage.c_str(), static_cast<long long>(update.step));
  for (const auto& [topic, accuracy] : update.accuracy) std::printf("  %s %.3f", topic.c_str(), accuracy);
  std::printf("\n");
  std::fflush(stdout);
}

ExitStatus train(const TrainDemoOptions& options) {
  catch_interrupts();
  TerminalProgress progress;
  TrainingCallbacks callbacks;
  callbacks.should_cancel = [] { return interrupted(); };
  callbacks.on_update = [&](const TrainingUpdate& update) {
    if (update.accuracy.empty()) {
      char text[96];
      std::snprintf(text, sizeof text, "%s, loss %.3f", update.stage.c_str(), update.loss);
      progress.show(text, update.step, update.steps);
      return;
    }
    progress.clear();
    print_evaluation(update);
  };
  const TrainDemoResult result = train_demo(options, callbacks);
  progress.clear();
  for (const std::string& stage : result.out_of_steps)
    std::printf("%s: out of steps before its stop rule was met\n", stage.c_str());
  if (result.cancelled) std::printf("saved; the same command goes on\n");
  return interrupted() ? kInterrupted : kDone;
}

}  // namespace

Run add_train_demo(CLI::App& app) {
  const auto options = std::make_shared<TrainDemoOptions>();
  options->out = "train-demo";
  app.add_option("--out", options->out, "Folder for states, logs and the model (train-demo)")->type_name("DIR");
  std::string names;
  for (const DemoStage& stage : demo_stages()) {
    const bool is_first_of_recipe = names.find(stage.recipe + ": ") == std::string::npos;
    names += is_first_of_recipe ? (names.empty() ? "" : "; ") + stage.recipe + ": " : ", ";
    names += stage.name;
  }
  app.add_option("--recipe", options->recipe,
                 "Which model: demo, the bundled one, or crowded, for crowded pictures and screens (demo)")
      ->check(CLI::IsMember({"demo", "crowded"}))
      ->type_name("NAME");
  app.add_option("--stage", options->stages, "Only this stage; may be given several times: " + names)
      ->type_name("NAME");
  add_integer(
      app, "--seed", {0, INT64_MAX}, [=](int64_t n) { options->seed = static_cast<uint64_t>(n); },
      "Of weights and data (0)");
  add_integer(
      app, "--threads", {1, 1024}, [=](int64_t n) { options->threads = static_cast<int>(n); },
      "Processor threads (1: two runs with one thread each beat one run with two)");
  add_integer(
      app, "--max-steps", {1, INT64_MAX}, [=](int64_t n) { options->max_steps = n; },
      "Pause a stage after so many steps; the same command goes on");
  add_integer(
      app, "--save-every", {1, INT64_MAX}, [=](int64_t n) { options->save_every = n; },
      "Steps between saved states (the stage's own)");
  app.add_option_function<std::string>(
         "--dtype",
         [=](const std::string& name) {
           options->dtype = name == "bf16" ? ComputeDtype::kBFloat16 : ComputeDtype::kFloat32;
         },
         "Of the arithmetic: f32 or bf16 (bf16, with float32 masters)")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->type_name("TYPE");
  app.footer(
      "Stages follow each other, each from what the one before saved; interrupted, the same command goes on.\n\n"
      "  espalier train-demo --out demo\n"
      "  espalier train-demo --out demo --stage " +
      demo_stages().front().name + " --max-steps 100");
  return [=] { return train(*options); };
}

}  // namespace espalier::cli
