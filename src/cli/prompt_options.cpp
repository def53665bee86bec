// SPDX-License-Identifier: Apache-2.0
#include "cli/prompt_options.h"

#include <CLI/App.hpp>
#include <memory>
#include <utility>

#include "base/output_file.h"
#include "cli/bundled_model.h"
#include "cli/interrupt.h"
#include "cli/number_option.h"
#include "cli/terminal_progress.h"
#include "espalier/error.h"
#include "espalier/image.h"
#include "espalier/pruning.h"

namespace espalier::cli {

namespace {

std::optional<ComputeDtype> dtype_of(const std::string& name) {
  if (name == "f32") return ComputeDtype::kFloat32;
  if (name == "bf16") return ComputeDtype::kBFloat16;
  if (name == "f16") return ComputeDtype::kFloat16;
  return std::nullopt;
}

void take_into(CLI::App& app, const char* name, std::optional<std::string>& into, const char* type,
               const char* description) {
  app.add_option_function<std::string>(
         name, [&into](const std::string& value) { into = value; }, description)
      ->type_name(type);
}

}  // namespace

void add_model_options(CLI::App& app, ModelOptions& options) {
  app.add_option("--model", options.model, "Hugging Face folder of the model; without it the bundled model")
      ->type_name("DIR");
  app.add_option("--chat-template", options.chat_template,
                 "Jinja file, or JSON with \"chat_template\", in place of the model's own")
      ->type_name("FILE");
  app.add_option("--costs", options.costs, "What espalier calibrate --out wrote, for policies with a target of time")
      ->type_name("FILE");
  app.add_option("--dtype", options.dtype, "Arithmetic: f32, bf16 or f16; without it what config.json says")
      ->check(CLI::IsMember({"f32", "bf16", "f16"}))
      ->type_name("TYPE");
  app.add_flag("--int8", options.int8,
               "Keep the decoder's weights as int8 with one scale per output; arithmetic as --dtype");
  app.add_option("--device", options.device, "cpu or cuda")->check(CLI::IsMember({"cpu", "cuda"}))->type_name("DEVICE");
  app.add_flag("--no-decode-graphs", options.no_decode_graphs,
               "On CUDA, launch the steps of decoding one by one instead of replaying a recorded one");
  add_integer(
      app, "--threads", {1, 1024}, [&options](int64_t n) { options.threads = static_cast<int>(n); },
      "Processor threads; without it one for each core");
  app.add_flag_callback(
      "--verbose", [&options] { options.log_level = LogLevel::kVerbose; },
      "Say on stderr what was loaded and how it runs: family, chat template, kernels, memory");
}

Engine load_engine(const ModelOptions& options, TerminalProgress& progress) {
  const std::filesystem::path folder = options.model.empty() ? bundled_model() : options.model;
  EngineOptions engine_options;
  engine_options.dtype = dtype_of(options.dtype);
  engine_options.int8_weights = options.int8;
  engine_options.decode_graphs = !options.no_decode_graphs;
  engine_options.device = options.device == "cuda" ? DeviceKind::kCuda : DeviceKind::kCpu;
  engine_options.threads = options.threads;
  engine_options.chat_template = options.chat_template;
  engine_options.costs = options.costs;
  engine_options.prefix_cache_bytes = options.prefix_cache_bytes;
  engine_options.image_cache_bytes = options.image_cache_bytes;
  engine_options.log_level = options.log_level;
  engine_options.on_progress = [&progress](std::string_view stage, int64_t done, int64_t total) {
    if (interrupted()) throw Interrupted();
    progress.show(stage, done, total);
  };
  Engine engine = Engine::load(folder, engine_options);
  progress.clear();
  return engine;
}

void add_prompt_options(CLI::App& app, PromptOptions& options) {
  app.add_option("--image", options.images, "Picture (JPEG, PNG or WebP); several in the order of the prompt")
      ->type_name("FILE");
  take_into(app, "--prompt", options.prompt, "TEXT",
            "One user turn: the pictures, then this text, put through the chat template");
  take_into(app, "--raw-prompt", options.raw_prompt, "TEXT",
            "The exact text, with the model's image placeholder (<image>) where each picture goes");
  app.add_option(
         "--chat", options.chats,
         "Conversation in JSON: [{\"role\", \"content\": [{\"type\": \"image\", \"path\"}, {\"type\": \"text\", "
         "\"text\"}]}, …]; paths are "
         "relative to the file, earlier user and assistant turns are in-context examples")
      ->allow_extra_args(false)
      ->type_name("FILE");
}

void add_policy_option(CLI::App& app, PromptOptions& options) {
  app.add_option("--policy", options.policy,
                 "Which visual tokens to drop, NAME or NAME:OPTION=VALUE,…; see espalier policies")
      ->capture_default_str()
      ->type_name("SPEC");
  add_plugin_option(app, options.plugins);
}

std::vector<Prompt> read_prompts(const PromptOptions& options) {
  const int given = options.prompt.has_value() + options.raw_prompt.has_value() + !options.chats.empty();
  if (given != 1)
    throw Error("exactly one of --prompt, --raw-prompt and --chat is needed, got " + std::to_string(given));
  if (!options.chats.empty()) {
    if (!options.images.empty()) throw Error("--image: with --chat the pictures are named in the messages file");
    std::vector<Prompt> chats;
    for (const std::string& file : options.chats) chats.emplace_back(read_chat(file));
    return chats;
  }
  std::vector<ImagePart> images;
  for (const std::string& file : options.images)
    images.push_back({.image = std::make_shared<const Image>(read_image(file)), .pin_all = false, .pins = {}});
  if (options.raw_prompt)
    return {RawPrompt{.text = *options.raw_prompt, .images = std::move(images), .example_begins = {}}};
  Message turn{.role = "user", .content = {}};
  for (ImagePart& image : images) turn.content.emplace_back(std::move(image));
  turn.content.emplace_back(TextPart{*options.prompt});
  return {Chat{{std::move(turn)}}};
}

std::vector<Request> read_requests(const PromptOptions& options) {
  const std::shared_ptr<const PruningPolicy> custom = read_policy(options.plugins, options.policy);
  std::vector<Request> requests;
  for (Prompt& prompt : read_prompts(options)) {
    Request& request = requests.emplace_back();
    request.policy = options.policy;
    request.custom = custom;
    request.prompt = std::move(prompt);
  }
  return requests;
}

Prompt read_prompt(const PromptOptions& options) {
  if (options.chats.size() > 1)
    throw Error("--chat: this command takes one prompt, got " + std::to_string(options.chats.size()));
  return std::move(read_prompts(options)[0]);
}

Request read_request(const PromptOptions& options) {
  if (options.chats.size() > 1)
    throw Error("--chat: this command takes one prompt, got " + std::to_string(options.chats.size()));
  return std::move(read_requests(options)[0]);
}

Callbacks watch(TerminalProgress& progress) {
  Callbacks callbacks;
  callbacks.should_cancel = interrupted;
  callbacks.on_progress = [&progress](std::string_view stage, int64_t done, int64_t total) {
    progress.show(stage, done, total);
  };
  return callbacks;
}

void check_outputs(const ModelOptions& model, const PromptOptions& prompt,
                   const std::vector<std::filesystem::path>& outputs) {
  std::vector<std::filesystem::path> inputs(prompt.images.begin(), prompt.images.end());
  inputs.insert(inputs.end(), prompt.chats.begin(), prompt.chats.end());
  inputs.push_back(model.chat_template);
  std::error_code failure;
  for (auto file = std::filesystem::directory_iterator(model.model.empty() ? bundled_model() : model.model, failure);
       !failure && file != std::filesystem::directory_iterator(); file.increment(failure))
    inputs.push_back(file->path());
  for (const std::filesystem::path& output : outputs)
    if (!output.empty()) check_output_folder(output);
  espalier::check_outputs(inputs, outputs);
}

}  // namespace espalier::cli
