// SPDX-License-Identifier: Apache-2.0
#include "espalier/engine.h"

#include <c10/core/InferenceMode.h>

#include <optional>

#include "espalier/error.h"
#include "kernels/support/device_graph.h"
#include "runtime/encode.h"
#include "runtime/engine_impl.h"
#include "runtime/generate.h"
#include "runtime/out_of_memory.h"
#include "runtime/prompt_packer.h"
#include "runtime/waiting_call.h"

namespace espalier {

namespace {

RecordedSteps::MakeGraph graphs_for(const LoadedModel& model, const EngineOptions& options) {
  if (!options.decode_graphs || !model.device.is_cuda()) return {};
  return [device = model.device] { return kernels::make_device_graph(device); };
}

// What `work` returns, without gradients.
template <typename Work>
auto compute_on(ComputeThread& thread, const Work& work) {
  std::optional<decltype(work())> result;
  thread.run([&] {
    const c10::InferenceMode no_gradients;
    result.emplace(work());
  });
  return std::move(*result);
}

}  // namespace

Engine::Impl::Impl(std::unique_ptr<ComputeThread> thread, const std::filesystem::path& folder,
                   const EngineOptions& options)
    : compute(std::move(thread)),
      model(compute_on(*compute, [&] { return load_model(folder, options); })),
      images(options.image_cache_bytes > 0 ? std::make_unique<ImageCache>(options.image_cache_bytes) : nullptr),
      schedule(std::make_unique<SharedSchedule>(
          model,
          ScheduleOptions{.images = images.get(),
                          .prefix_cache_bytes = options.prefix_cache_bytes,
                          .make_graph = graphs_for(model, options),
                          .on_done =
                              [](const std::unique_ptr<RequestRun>& run) {
                                std::static_pointer_cast<WaitingCall>(run->call)->end(*run);
                              }},
          compute.get())) {}

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Engine::Engine(Engine&&) noexcept = default;
Engine& Engine::operator=(Engine&&) noexcept = default;
Engine::~Engine() = default;

Engine Engine::load(const std::filesystem::path& folder, const EngineOptions& options) {
  if (options.image_cache_bytes < 0)
    throw Error("image_cache_bytes: a number from 0 up was expected, got " + std::to_string(options.image_cache_bytes));
  if (options.prefix_cache_bytes < 0)
    throw Error("prefix_cache_bytes: a number from 0 up was expected, got " +
                std::to_string(options.prefix_cache_bytes));
  if (options.threads < 0 || options.threads > 1024)
    throw Error("threads: a number from 0 to 1024 was expected, got " + std::to_string(options.threads));
  return in_our_words(
      [&] { return Engine(std::make_unique<Impl>(std::make_unique<ComputeThread>(), folder, options)); });
}

const Engine::Impl& Engine::impl() const {
  if (!impl_) throw Error("engine: this one was moved from");
  return *impl_;
}

Result Engine::generate(const Request& request, const Callbacks& callbacks) const {
  return std::move(generate(std::span(&request, 1), callbacks)[0]);
}

std::vector<Result> Engine::generate(std::span<const Request> requests, const Callbacks& callbacks) const {
  const Impl& self = impl();
  return in_our_words([&] {
    if (self.compute->is_this_thread())  // asked by a callback, which must not wait for itself
      return espalier::generate(self.model, requests, callbacks, {}, self.images.get());
    const c10::InferenceMode no_gradients;
    const auto waiting = std::make_shared<WaitingCall>(callbacks, requests.size());
    SharedSchedule::Runs runs;
    for (size_t i = 0; i < requests.size(); ++i)
      runs.push_back(std::make_unique<RequestRun>(self.model, requests[i], i, waiting,
                                                  RunExtras{.uses_prefixes = self.schedule->caches_prefixes()}));
    self.schedule->admit(std::move(runs));
    return waiting->wait();
  });
}

std::shared_ptr<const ImageHandle> Engine::look_at(std::shared_ptr<const Image> image) const {
  const Impl& self = impl();
  return in_our_words(
      [&] { return compute_on(*self.compute, [&] { return espalier::look_at(self.model, std::move(image)); }); });
}

TokenCounts Engine::count_tokens(const Prompt& prompt) const {
  const LoadedModel& model = impl().model;
  const PackedPrompt packed = in_our_words([&] { return pack_prompt(model, prompt, std::nullopt); });
  TokenCounts counts;
  counts.prompt_tokens = packed.layout->num_tokens;
  for (size_t i = 0; i < packed.images.size(); ++i)
    counts.tokens_per_image.push_back(packed.layout->num_image_tokens(static_cast<int>(i), true));
  counts.max_positions = model.config.decoder.max_positions;
  return counts;
}

const Tokenizer& Engine::tokenizer() const {
  return impl().model.tokenizer;
}
const ModelFacts& Engine::facts() const {
  return impl().model.facts;
}
std::filesystem::path Engine::folder() const {
  return impl().model.folder;
}

}  // namespace espalier
