// SPDX-License-Identifier: Apache-2.0
#include "espalier/engine.h"

#include <ATen/DeviceAccelerator.h>
#include <c10/core/InferenceMode.h>

#include "espalier/error.h"
#include "runtime/encode.h"
#include "runtime/engine_impl.h"
#include "runtime/generate.h"
#include "runtime/prompt_packer.h"

namespace espalier {

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Engine::Engine(Engine&&) noexcept = default;
Engine& Engine::operator=(Engine&&) noexcept = default;
Engine::~Engine() = default;

Engine Engine::load(const std::filesystem::path& folder, const EngineOptions& options) {
  const c10::InferenceMode no_gradients;
  if (options.image_cache_bytes < 0)
    throw Error("image_cache_bytes: a number from 0 up was expected, got " + std::to_string(options.image_cache_bytes));
  auto images = options.image_cache_bytes > 0 ? std::make_unique<ImageCache>(options.image_cache_bytes) : nullptr;
  LoadedModel model = load_model(folder, options);
  std::unique_ptr<IdleDecoders> decoders;
  if (options.decode_graphs && model.device.is_cuda()) {
    const auto memory = static_cast<int64_t>(at::accelerator::getMemoryInfo(model.device.index()).second);
    decoders = std::make_unique<IdleDecoders>(memory / 8);
  }
  return Engine(std::make_unique<Impl>(Impl{std::move(model), std::move(images), std::move(decoders)}));
}

Result Engine::generate(const Request& request, const Callbacks& callbacks) const {
  return std::move(generate(std::span(&request, 1), callbacks)[0]);
}

std::vector<Result> Engine::generate(std::span<const Request> requests, const Callbacks& callbacks) const {
  RunHooks hooks;
  hooks.encode.cache = impl_->images.get();
  hooks.decoders = impl_->decoders.get();
  return generate_batch(impl_->model, requests, callbacks, hooks);
}

std::shared_ptr<const ImageHandle> Engine::look_at(std::shared_ptr<const Image> image) const {
  const c10::InferenceMode no_gradients;
  return espalier::look_at(impl_->model, std::move(image));
}

TokenCounts Engine::count_tokens(const Prompt& prompt) const {
  const PackedPrompt packed = pack_prompt(impl_->model, prompt, 0);
  TokenCounts counts;
  counts.prompt_tokens = packed.layout->num_tokens;
  for (size_t i = 0; i < packed.images.size(); ++i)
    counts.tokens_per_image.push_back(packed.layout->num_image_tokens(static_cast<int>(i), true));
  counts.max_positions = impl_->model.config.decoder.max_positions;
  return counts;
}

const Tokenizer& Engine::tokenizer() const {
  return impl_->model.tokenizer;
}
std::filesystem::path Engine::folder() const {
  return impl_->model.folder;
}

}  // namespace espalier
