// SPDX-License-Identifier: Apache-2.0
// The options that commands share which run a model on a prompt, and what they become: an engine and a request.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "cli/output_folder.h"
#include "cli/policy_options.h"
#include "espalier/engine.h"
#include "espalier/generation.h"

namespace CLI {
class App;
}

namespace espalier::cli {

class TerminalProgress;

struct ModelOptions {
  std::filesystem::path model;          // empty: the bundled one
  std::filesystem::path costs;          // empty: where calibrate leaves them
  std::filesystem::path chat_template;  // empty: the model's own
  std::string dtype;                    // empty: the checkpoint's
  bool int8 = false;
  bool no_decode_graphs = false;
  std::string device = "cpu";
  int threads = 0;  // 0: as many as the library chooses
  int64_t prefix_cache_bytes = 0;
  int64_t image_cache_bytes = 0;
  LogLevel log_level = LogLevel::kWarning;
};
void add_model_options(CLI::App& app, ModelOptions& options);

// Throws Interrupted on Ctrl-C.
Engine load_engine(const ModelOptions& options, TerminalProgress& progress);

struct PromptOptions {
  std::vector<std::string> images;
  std::optional<std::string> prompt, raw_prompt;
  std::vector<std::string> chats;
  std::string policy = "none";
  PluginOptions plugins;
};
void add_prompt_options(CLI::App& app, PromptOptions& options);  // all but the policy
void add_policy_option(CLI::App& app, PromptOptions& options);

// Reads the pictures. --chat may have been given several times: a prompt each.
std::vector<Prompt> read_prompts(const PromptOptions& options);
// The same with the policy, which is checked first. Throws Error before a model is loaded.
std::vector<Request> read_requests(const PromptOptions& options);
// Of commands that take one prompt.
Prompt read_prompt(const PromptOptions& options);
Request read_request(const PromptOptions& options);

// Cancels on Ctrl-C and draws progress.
Callbacks watch(TerminalProgress& progress);

// check_output_folder of each of them (empty: none); throws Error, too, when one would replace another of them, or a
// file that the model or the prompt is read from.
void check_outputs(const ModelOptions& model, const PromptOptions& prompt,
                   const std::vector<std::filesystem::path>& outputs);

}  // namespace espalier::cli
