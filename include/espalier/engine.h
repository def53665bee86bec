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
#include "espalier/tokenizer.h"

namespace espalier {

enum class ComputeDtype : uint8_t { kFloat32, kBFloat16, kFloat16 };
enum class DeviceKind : uint8_t { kCpu, kCuda };

struct EngineOptions {
  std::optional<ComputeDtype> dtype;  // unset: the checkpoint's
  DeviceKind device = DeviceKind::kCpu;
  int threads = 0;  // 0: as many as the library chooses
  Progress on_progress;
};

// How long a request's sequence is before anything runs.
struct TokenCounts {
  int64_t prompt_tokens = 0;              // text and images
  std::vector<int64_t> tokens_per_image;  // row breaks included
  int64_t max_positions = 0;              // of the model
};

// After construction everything is const: concurrent calls on one Engine are safe.
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
  // All requests in one packed prefill and one decode loop; each ends by itself. Results are those of each alone.
  std::vector<Result> generate(std::span<const Request> requests, const Callbacks& callbacks = {}) const;

  TokenCounts count_tokens(const Prompt& prompt) const;
  const Tokenizer& tokenizer() const;
  std::filesystem::path folder() const;

  struct Impl;
  const Impl& impl() const { return *impl_; }  // for the parts of Espalier that record, replay and train

 private:
  explicit Engine(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace espalier
