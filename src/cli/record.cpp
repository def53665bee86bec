// SPDX-License-Identifier: Apache-2.0
#include "recording/record.h"

#include <CLI/App.hpp>
#include <cmath>
#include <memory>
#include <string>

#include "cli/commands.h"
#include "cli/interrupt.h"
#include "cli/number_option.h"
#include "cli/prompt_options.h"
#include "cli/terminal_progress.h"
#include "runtime/engine_impl.h"

namespace espalier::cli {

namespace {

struct RecordOptions {
  ModelOptions model;
  PromptOptions prompt;
  RecordFiles files;
};

// Whole attention maps grow with the square of the prompt; nothing else in a recording does.
void warn_of_size(const Engine& engine, const Request& request) {
  const ModelFacts& facts = engine.facts();
  const auto tokens = static_cast<double>(engine.count_tokens(request.prompt).prompt_tokens);
  const double gigabytes = tokens * tokens * facts.num_heads * facts.num_layers * sizeof(float) / 1e9;
  if (gigabytes < 1) return;
  engine.impl().model.log.warning("the attention maps of this prompt are " + std::to_string(std::llround(gigabytes)) +
                                  " GB in memory and on disk; --only limits what is recorded");
}

ExitStatus record(const RecordOptions& options) {
  const std::vector<std::filesystem::path> outputs = {options.files.signals, options.files.layout};
  check_outputs(options.model, options.prompt, outputs);
  const Request request = read_request(options.prompt);
  catch_interrupts();
  TerminalProgress progress;
  const Engine engine = load_engine(options.model, progress);
  if (options.files.only.empty()) warn_of_size(engine, request);
  espalier::record(engine.impl().model, request, options.files, watch(progress));
  return kDone;
}

}  // namespace

Run add_record(CLI::App& app) {
  const auto options = std::make_shared<RecordOptions>();
  add_model_options(app, options->model);
  add_prompt_options(app, options->prompt);
  add_policy_option(app, options->prompt);
  app.add_option("--signals", options->files.signals, "Tensors to write, safetensors")->required()->type_name("FILE");
  app.add_option("--layout", options->files.layout, "Layout of the sequence to write, JSON")
      ->required()
      ->type_name("FILE");
  app.add_option("--only", options->files.only,
                 "Record only these: a tensor (attention.5) or all of a kind (hidden); without it everything, whole "
                 "attention maps of every layer included")
      ->type_name("NAME");
  add_integer(
      app, "--generated", {0, 1 << 20}, [options](int64_t n) { options->files.generated = n; },
      "So many tokens of the answer too: what policies read that are asked again while decoding")
      ->type_name("N");
  app.footer(
      "Without --policy the run is unpruned. With one, the signals are those of the pruned run, with zeros for tokens "
      "that are gone.\n\n"
      "  espalier record --image cat.jpg --prompt \"What is on the sofa?\" \\\n"
      "      --signals s.safetensors --layout l.json --only hidden attention.2");
  return [options] { return record(*options); };
}

}  // namespace espalier::cli
