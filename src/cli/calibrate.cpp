// SPDX-License-Identifier: Apache-2.0
// `espalier calibrate`: what passes take on this machine, for policies with a target of time (`divprune:ttft=250ms`).
#include <ATen/Parallel.h>

#include <CLI/App.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/interrupt.h"
#include "cli/number_option.h"
#include "cli/prompt_options.h"
#include "cli/terminal_progress.h"
#include "runtime/calibrate.h"
#include "runtime/engine_impl.h"
#include "runtime/result_json.h"

namespace espalier::cli {

namespace {

struct Options {
  ModelOptions model;
  CalibrateOptions calibrate;
  std::filesystem::path out;
  int64_t check = 0;
};

void print_checked(const std::vector<CheckedPass>& passes) {
  for (const CheckedPass& pass : passes)
    std::printf("%s\n", to_line({{"policy", pass.policy},
                                 {"pictures", pass.pictures},
                                 {"prompt_tokens", pass.prompt_tokens},
                                 {"predicted_ms", pass.predicted_ms},
                                 {"measured_ms", pass.measured_ms}})
                            .c_str());
  std::vector<double> errors;
  for (const CheckedPass& pass : passes) errors.push_back(std::abs(pass.predicted_ms / pass.measured_ms - 1));
  std::ranges::sort(errors);
  const auto within = std::ranges::upper_bound(errors, 0.1) - errors.begin();
  std::fprintf(stderr, "%ld of %zu within 10 %%; median error %.1f %%, 95 %% are within %.1f %%\n",
               static_cast<long>(within), errors.size(), 100 * errors[errors.size() / 2],
               100 * errors[errors.size() * 95 / 100]);
}

ExitStatus calibrate(const Options& options) {
  catch_interrupts();
  TerminalProgress progress;
  const Engine engine = load_engine(options.model, progress);
  CalibrateOptions measuring = options.calibrate;
  measuring.should_cancel = interrupted;
  measuring.on_progress = watch(progress).on_progress;
  if (options.check > 0) {
    const CostModel& costs = engine.impl().model.costs.with_threads(at::get_num_threads());
    const std::vector<CheckedPass> passes = check_costs(engine, costs, options.check, measuring);
    progress.clear();
    print_checked(passes);
    return kDone;
  }
  MeasuredCosts measured = measure_costs(engine, measuring);
  progress.clear();
  const double error = measured.median_error;
  const long passes = static_cast<long>(measured.passes);
  const std::filesystem::path file = save_costs(engine.folder(), options.out, std::move(measured));
  std::printf("%s: %ld passes, expected within %.1f %% in the median\n", file.c_str(), passes, 100 * error);
  return kDone;
}

}  // namespace

Run add_calibrate(CLI::App& app) {
  const auto options = std::make_shared<Options>();
  add_model_options(app, options->model);
  app.add_option("--policy", options->calibrate.policies,
                 "Policies to measure, with other options than an amount where they change what is computed; without "
                 "it all that take one")
      ->allow_extra_args(false)
      ->type_name("SPEC");
  app.add_option("--out", options->out, "File to write, in place of the model's folder or the user's cache")
      ->type_name("FILE");
  add_integer(
      app, "--passes", {2, 10'000}, [options](int64_t n) { options->calibrate.passes = n; },
      "Measured with each policy, and four times as many without one (10)");
  add_integer(
      app, "--seed", {}, [options](int64_t n) { options->calibrate.seed = static_cast<uint64_t>(n); },
      "Of the made-up prompts (0)");
  add_integer(
      app, "--check", {1, 100'000}, [options](int64_t n) { options->check = n; },
      "Measure nothing new: run N other prompts and print what was expected of each beside what it took, as JSON");
  app.footer(
      "What it writes holds for this model, machine, dtype, device and number of threads. Policies that were measured\n"
      "by name serve for their other options too, as long as these do not change what is computed.\n\n"
      "  espalier calibrate --model llava-1.5-7b-hf \\\n"
      "      --policy divprune --policy fastv:rows=all\n"
      "  espalier generate --model llava-1.5-7b-hf --policy divprune:ttft=250ms …\n"
      "  espalier calibrate --model llava-1.5-7b-hf --check 100 --seed 1");
  return [options] { return calibrate(*options); };
}

}  // namespace espalier::cli
