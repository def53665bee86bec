// SPDX-License-Identifier: Apache-2.0
#include "cli/sampling_options.h"

#include <CLI/App.hpp>

#include "cli/number_option.h"

namespace espalier::cli {

void add_sampling_options(CLI::App& app, GenerationOptions& options) {
  constexpr int64_t kMany = 1'000'000'000;
  add_integer(
      app, "--max-new-tokens", {0, kMany}, [&options](int64_t n) { options.max_new_tokens = n; },
      "Longest answer, in tokens (128)");
  CLI::Option* greedy =
      app.add_flag("--greedy", options.greedy,
                   "Always the most likely token: no sampling, no penalty, whatever the checkpoint says");
  add_real(
      app, "--temperature", {0, 1e6}, [&options](double x) { options.temperature = x; },
      "Sample; below 1 sharper, above 1 flatter")
      ->excludes(greedy);
  add_integer(
      app, "--top-k", {0, kMany}, [&options](int64_t n) { options.top_k = n; },
      "Sample among the N most likely tokens; 0 for all")
      ->excludes(greedy);
  add_real(
      app, "--top-p", {0, 1}, [&options](double x) { options.top_p = x; },
      "Sample among the fewest tokens whose probabilities reach X")
      ->excludes(greedy);
  add_real(
      app, "--repetition-penalty", {0, 1e6}, [&options](double x) { options.repetition_penalty = x; },
      "Above 1 makes tokens rarer that prompt or answer already hold")
      ->excludes(greedy);
  add_integer(
      app, "--seed", {}, [&options](int64_t n) { options.seed = static_cast<uint64_t>(n); },
      "Of the sampling; the same seed gives the same answer (0)");
  app.add_option("--stop", options.stop, "End the answer before this text; may be given several times")
      ->allow_extra_args(false)
      ->type_name("TEXT");
  app.add_flag("--ignore-eos", options.ignore_eos, "Go on after the end token, up to --max-new-tokens");
}

}  // namespace espalier::cli
