// SPDX-License-Identifier: Apache-2.0
#include <CLI/App.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <utility>

#include "cli/commands.h"
#include "cli/interrupt.h"
#include "cli/number_option.h"
#include "cli/prompt_options.h"
#include "cli/stats_text.h"
#include "cli/terminal_progress.h"
#include "recording/record.h"
#include "runtime/engine_impl.h"
#include "runtime/result_json.h"
#include "runtime/stopwatch.h"

namespace espalier::cli {

namespace {

struct GenerateOptions {
  ModelOptions model;
  PromptOptions prompt;
  GenerationOptions generation;
  std::filesystem::path dump, pixel_values;
  bool json = false;
  bool stats = false;
};

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
  app.add_flag("--ignore-eos", options.ignore_eos, "Go on behind the end token, up to --max-new-tokens");
}

void add_output_options(CLI::App& app, GenerateOptions& options) {
  app.add_flag("--json", options.json,
               "Print one JSON object instead of the text: answer, token ids, kept tokens, statistics");
  app.add_flag("--stats", options.stats, "Print tokens kept, times, KV cache, FLOPs and memory to stderr");
  app.add_option("--dump", options.dump,
                 "Also write ids, hidden states and logits to PREFIX.safetensors and PREFIX.json")
      ->type_name("PREFIX");
  app.add_option("--pixel-values", options.pixel_values,
                 "Feed the tensor pixel_values of this safetensors file instead of preprocessing the pictures")
      ->type_name("FILE");
}

void print(std::string_view text) {
  const bool is_written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0;
  if (!is_written) throw std::runtime_error("cannot write to standard output");
}

Result answer(const Engine& engine, const Request& request, const GenerateOptions& options,
              const Callbacks& callbacks) {
  const LoadedModel& model = engine.impl().model;
  if (!options.dump.empty()) return dump(model, request, options.dump, options.pixel_values, callbacks);
  if (!options.pixel_values.empty()) return generate_from_pixels(model, request, options.pixel_values, callbacks);
  return engine.generate(request, callbacks);
}

ExitStatus generate(const GenerateOptions& options) {
  if (!options.dump.empty()) check_output_folder(options.dump);
  Stopwatch reading;
  Request request = read_request(options.prompt);
  reading.stop();
  request.options = options.generation;
  request.trace = options.json;
  catch_interrupts();
  TerminalProgress progress;
  const Engine engine = load_engine(options.model, progress);
  Callbacks callbacks = watch(progress);
  if (!options.json)
    callbacks.on_text = [&progress](size_t, std::string_view piece) {
      progress.clear();
      print(piece);
      return Continue::kGo;
    };
  Result result = answer(engine, request, options, callbacks);
  progress.clear();
  if (!options.json) print("\n");
  if (result.finish_reason == FinishReason::kCancelled) return kInterrupted;
  result.stats.encode_ms += reading.milliseconds();  // pictures were decoded before the engine saw them
  if (options.json) print(to_line(to_json(result)) + "\n");
  if (options.stats) std::fputs(stats_text(result.stats).c_str(), stderr);
  return kDone;
}

}  // namespace

Run add_generate(CLI::App& app) {
  const auto options = std::make_shared<GenerateOptions>();
  add_model_options(app, options->model);
  add_prompt_options(app, options->prompt);
  add_policy_option(app, options->prompt);
  add_sampling_options(app, options->generation);
  add_output_options(app, *options);
  app.footer(
      "The text goes to stdout as it comes, everything else to stderr. Sampling defaults are those of the model's\n"
      "generation_config.json.\n\n"
      "  espalier generate --image cat.jpg --prompt \"What is on the sofa?\"\n"
      "  espalier generate --model llava-1.5-7b-hf --image a.jpg --image b.jpg --prompt \"What differs?\" \\\n"
      "      --policy fastv:keep_ratio=1/2 --greedy --stats");
  return [options] { return generate(*options); };
}

}  // namespace espalier::cli
