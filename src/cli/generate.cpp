// SPDX-License-Identifier: Apache-2.0
#include <CLI/App.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "base/output_file.h"
#include "cli/commands.h"
#include "cli/interrupt.h"
#include "cli/json_output.h"
#include "cli/number_option.h"
#include "cli/prompt_options.h"
#include "cli/sampling_options.h"
#include "cli/standard_output.h"
#include "cli/stats_text.h"
#include "cli/terminal_progress.h"
#include "espalier/error.h"
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
  JsonOutput json;
  bool stats = false;
};

void add_output_options(CLI::App& app, GenerateOptions& options) {
  options.json.add_option(app, "one line per prompt: answer, token ids, kept tokens, statistics");
  add_integer(
      app, "--prefix-cache", {0, int64_t{1} << 50}, [&options](int64_t n) { options.model.prefix_cache_bytes = n; },
      "Bytes for beginnings that several --chat share: computed once, answered the same")
      ->type_name("BYTES");
  app.add_flag("--stats", options.stats, "Print tokens kept, times, KV cache, FLOPs and memory to stderr");
  app.add_option("--dump", options.dump,
                 "Also write ids, hidden states and logits to PREFIX.safetensors and PREFIX.json")
      ->type_name("PREFIX");
  app.add_option("--pixel-values", options.pixel_values,
                 "Feed the tensor pixel_values of this safetensors file instead of preprocessing the pictures")
      ->type_name("FILE");
}

std::vector<Result> answer(const Engine& engine, const std::vector<Request>& requests, const GenerateOptions& options,
                           const Callbacks& callbacks) {
  const LoadedModel& model = engine.impl().model;
  if (!options.dump.empty()) return {dump(model, requests[0], options.dump, options.pixel_values, callbacks)};
  if (!options.pixel_values.empty()) return {generate_from_pixels(model, requests[0], options.pixel_values, callbacks)};
  return engine.generate(requests, callbacks);
}

ExitStatus generate(const GenerateOptions& options) {
  check_outputs(options.model, options.prompt, {options.json.file()});
  if (!options.dump.empty()) {
    const std::string prefix = options.dump.string();
    const std::vector<std::filesystem::path> outputs = {prefix + ".json", prefix + ".safetensors"};
    check_outputs(options.model, options.prompt, outputs);
    espalier::check_outputs({options.pixel_values}, outputs);
  }
  Stopwatch reading;
  std::vector<Request> requests = read_requests(options.prompt);
  reading.stop();
  const bool is_one = requests.size() == 1;
  if (!is_one && !(options.dump.empty() && options.pixel_values.empty()))
    throw Error("--dump and --pixel-values take one prompt, got " + std::to_string(requests.size()));
  for (Request& request : requests) {
    request.options = options.generation;
    request.trace = options.json.is_wanted();
  }
  catch_interrupts();
  TerminalProgress progress;
  const Engine engine = load_engine(options.model, progress);
  Callbacks callbacks = watch(progress);
  if (!options.json.replaces_text() && is_one)
    callbacks.on_text = [&progress](size_t, std::string_view piece) {
      progress.clear();
      print(piece);
      return Continue::kGo;
    };
  std::vector<Result> results = answer(engine, requests, options, callbacks);
  progress.clear();
  // Also of answers that Ctrl-C cut short: their finish_reason says so.
  std::string lines;
  bool was_cancelled = false;
  for (size_t i = 0; i < results.size(); ++i) {
    Result& result = results[i];
    was_cancelled |= result.finish_reason == FinishReason::kCancelled;
    // Pictures were decoded before the engine saw them.
    result.stats.encode_ms += reading.milliseconds() / static_cast<double>(results.size());
    if (!options.json.replaces_text()) print(is_one ? "\n" : result.text + "\n");
    if (options.json.is_wanted()) {
      nlohmann::ordered_json line = json_head(engine);
      line.update(to_json(result));
      lines += to_line(line) + "\n";
    }
    if (options.stats) std::fputs(stats_text(result.stats).c_str(), stderr);
  }
  options.json.write(lines);
  return was_cancelled ? kInterrupted : kDone;
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
      "generation_config.json. --chat may be given several times: the prompts run together, answers come in order.\n\n"
      "  espalier generate --image cat.jpg --prompt \"What is on the sofa?\"\n"
      "  espalier generate --model llava-1.5-7b-hf --image a.jpg --image b.jpg \\\n"
      "      --prompt \"What differs?\" --policy fastv:keep_ratio=1/2 --greedy --stats");
  return [options] { return generate(*options); };
}

}  // namespace espalier::cli
