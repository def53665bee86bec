// SPDX-License-Identifier: Apache-2.0
// Loads a checkpoint folder and answers requests. No libtorch type appears here.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "espalier/generation.h"
#include "espalier/log.h"
#include "espalier/model_facts.h"
#include "espalier/tokenizer.h"

namespace espalier {

enum class ComputeDtype : uint8_t { kFloat32, kBFloat16, kFloat16 };
enum class DeviceKind : uint8_t { kCpu, kCuda };

// How a checkpoint is loaded and computed: fixed for the engine's life.
struct EngineOptions {
  std::optional<ComputeDtype> dtype = {};  // unset: the checkpoint's
  // The decoder's linear layers as int8 weights with one scale per output (weight only: arithmetic stays in `dtype`).
  // Half of bf16's memory and, where reading weights decides, up to twice as fast; each weight is off by at most 1/254
  // of the largest of its row.
  bool int8_weights = false;
  DeviceKind device = DeviceKind::kCpu;
  // On CUDA the steps of decoding are recorded once, as a CUDA graph, and replayed without gaps between their launches.
  // False: launches one by one.
  bool decode_graphs = true;
  int threads = 0;  // 1 to 1024; 0: as many as the library chooses
  // A file with the chat template to use in place of the checkpoint's own: Jinja, or JSON with "chat_template".
  std::filesystem::path chat_template = {};
  // What `espalier calibrate` measured, for policies with a target of time; empty: where it leaves that, beside the
  // model or in the user's cache folder. Read when the model is loaded; what is wrong with it is an error of the
  // requests that need it.
  std::filesystem::path costs = {};
  // Bytes for what the vision tower made of recent pictures, known by their pixels: asked about again, under any policy
  // or prompt, they are not sent through it again. 0: nothing is kept.
  int64_t image_cache_bytes = 0;
  // Bytes for beginnings of prompts (demonstrations, earlier turns): what their tokens came to below the first step of
  // the policy that looks at the question is used again by requests that begin alike. Answers are the same with and
  // without it. 0: nothing is kept beyond what sessions hold.
  int64_t prefix_cache_bytes = 0;
  // The least of what is said, and to whom; without a sink to stderr.
  LogLevel log_level = LogLevel::kWarning;
  LogSink log = {};
  Progress on_progress = {};
};

// How long a request's sequence is before anything runs.
struct TokenCounts {
  int64_t prompt_tokens = 0;              // text and images
  std::vector<int64_t> tokens_per_image;  // row breaks included
  int64_t max_positions = 0;              // of the model
};

// After construction everything is const: concurrent calls on one Engine are safe. One that was moved from can only be
// assigned to or destroyed; every other call on it throws Error.
class Engine {
 public:
  // Throws Error when the folder is not a checkpoint that Espalier runs: missing or damaged files, an unknown
  // architecture, weights that contradict the config.
  static Engine load(const std::filesystem::path& folder, const EngineOptions& options = {});
  Engine(Engine&&) noexcept;
  Engine& operator=(Engine&&) noexcept;
  ~Engine();

  // Throws Error for a request that cannot be served (before any work where that is possible).
  Result generate(const Request& request, const Callbacks& callbacks = {}) const;
  // All requests join the running ones together; each ends by itself. Results are those of each alone. Calls of several
  // threads share one schedule and so the cores; callbacks run on its thread. Throws what the first request to fail
  // throws, and gives up the others of the call.
  std::vector<Result> generate(std::span<const Request> requests, const Callbacks& callbacks = {}) const;

  // Prepares a picture and runs the vision tower on it once, for all prompts whose ImagePart carries the handle.
  // Answers are the same with and without it. It must not outlive the engine.
  std::shared_ptr<const ImageHandle> look_at(std::shared_ptr<const Image> image) const;

  TokenCounts count_tokens(const Prompt& prompt) const;
  const Tokenizer& tokenizer() const;
  const ModelFacts& facts() const;
  std::filesystem::path folder() const;

  struct Impl;
  const Impl& impl() const;  // for the parts of Espalier that record, replay and train

 private:
  explicit Engine(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace espalier
