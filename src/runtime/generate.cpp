// SPDX-License-Identifier: Apache-2.0
#include "runtime/generate.h"

#include <ATen/DeviceAccelerator.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>
#include <sys/resource.h>

#include <algorithm>

#include "espalier/error.h"
#include "kernels/support/chosen_kernels.h"
#include "layout/prompt_trace.h"
#include "runtime/answer.h"
#include "runtime/decode.h"
#include "runtime/device_stopwatch.h"
#include "runtime/sampler.h"
#include "runtime/steady_decoder.h"
#include "runtime/stopwatch.h"

namespace espalier {

namespace {

int64_t peak_memory(at::Device device) {
  if (!device.is_cpu()) {
    const auto stats = at::accelerator::getDeviceStats(device.has_index() ? device.index() : 0);
    return stats.allocated_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)].peak;
  }
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss * int64_t{1024};
}

std::vector<std::vector<int64_t>> image_counts(const Sequence& sequence) {
  std::vector<std::vector<int64_t>> counts;
  for (const at::Tensor& layer : sequence.image_of_tokens) {
    const at::Tensor host = layer.cpu();
    std::vector<int64_t> of_layer(sequence.prompt.images.size(), 0);
    for (int64_t i = 0; i < host.size(0); ++i)
      if (const int64_t image = host.const_data_ptr<int64_t>()[i]; image >= 0) ++of_layer[static_cast<size_t>(image)];
    counts.push_back(std::move(of_layer));
  }
  return counts;
}

class Batch {
 public:
  Batch(const LoadedModel& model, std::span<const Request> requests, const Callbacks& callbacks)
      : model_(model), requests_(requests), callbacks_(callbacks) {
    for (const Request& request : requests) check(request);
    answers_.reserve(requests.size());
    for (size_t i = 0; i < requests.size(); ++i) {
      Stopwatch packing;
      const Request& request = requests[i];
      PolicyPtr policy = policy_of(request);
      PackedPrompt packed = pack_prompt(model, request.prompt, request.options.max_new_tokens, policy.get());
      sequences_.emplace_back(std::move(packed), std::move(policy), model.facts);
      rules_.push_back(sampling_rules(request.options, model.generation));
      samplers_.emplace_back(rules_.back(), request.options.seed, sequences_.back().prompt.ids);
      answers_.emplace_back(model.tokenizer, request.options, model.generation.eos_ids, i, callbacks.on_text);
      packing.stop();
      sequences_.back().stats.encode_ms += packing.milliseconds();
    }
  }

  std::vector<Result> run(RunHooks& hooks) {
    if (!model_.device.is_cpu()) at::accelerator::resetPeakStats(model_.device.has_index() ? model_.device.index() : 0);
    const kernels::ChosenKernels chosen;
    hooks.encode.should_cancel = hooks.prefill.should_cancel = callbacks_.should_cancel;
    hooks.encode.on_progress = hooks.prefill.on_progress = callbacks_.on_progress;
    if (callbacks_.on_point)
      hooks.prefill.on_acted = [this](size_t i) { callbacks_.on_point(i, sequences_[i].walk.last_point()); };
    try {
      for (size_t i = 0; i < sequences_.size(); ++i) {
        if (callbacks_.on_prompt) callbacks_.on_prompt(i, trace_of(*sequences_[i].prompt.layout));
        if (callbacks_.on_point)
          hooks.encode.on_acted = [this, i](const PolicyWalk& walk) { callbacks_.on_point(i, walk.last_point()); };
        encode(model_, sequences_[i], hooks.encode);
      }
      const at::Tensor rows = prefill(model_, sequences_, cache_, hooks.prefill);
      is_prefilled_ = true;
      take(rows, all());
      note_cache();
      decode(hooks.decoders);
    } catch (const Cancelled&) {
      for (Answer& answer : answers_)
        if (!is_prefilled_ || !answer.is_finished()) answer.cancel();  // even one that asked for no tokens
    }
    std::vector<Result> results;
    for (size_t i = 0; i < requests_.size(); ++i) {
      results.push_back(result(i));
      results.back().stats.kernels = chosen.list();
    }
    return results;
  }

 private:
  static void check(const Request& request) {
    if (request.options.max_new_tokens < 0)
      throw Error("max_new_tokens: 0 or more was expected, got " + std::to_string(request.options.max_new_tokens));
  }

  std::vector<size_t> all() const {
    std::vector<size_t> indices;
    for (size_t i = 0; i < requests_.size(); ++i)
      if (!answers_[i].is_finished()) indices.push_back(i);
    return indices;
  }

  // One sampled token for each of `of`, whose logits are the rows of `rows`; those not asked for more are skipped.
  void take(const at::Tensor& logit_rows, const std::vector<size_t>& of) {
    at::Tensor rows = logit_rows.to(at::kFloat).cpu().contiguous();
    const bool has_row_for_all = rows.size(0) == std::ssize(requests_);
    for (size_t i = 0; i < of.size(); ++i) {
      const at::Tensor row = rows.select(0, static_cast<int64_t>(has_row_for_all ? of[i] : i));
      const std::span<float> values(row.data_ptr<float>(), static_cast<size_t>(row.numel()));
      answers_[of[i]].add(samplers_[of[i]].next(values));
    }
  }

  // Steps that may follow: room for them is made ahead, up to a limit, since most answers end early.
  int64_t room_for(const std::vector<size_t>& active) const {
    constexpr int64_t kMost = 256;
    int64_t room = 0;
    for (const size_t i : active)
      room = std::max(room, requests_[i].options.max_new_tokens - std::ssize(answers_[i].ids()));
    return std::min(room, kMost);
  }

  void decode(IdleDecoders* idle) {
    DeviceStopwatch decoding(model_.device);
    std::unique_ptr<SteadyDecoder> steady;
    if (const std::vector<size_t> members = all(); idle && !members.empty())
      steady = idle->begin(model_, cache_, sequences_, members, room_for(members));
    else if (!members.empty() && !model_.device.is_cpu())
      kernels::note_kernel("decode", "launches");
    for (std::vector<size_t> active = all(); !active.empty(); active = all()) {
      if (callbacks_.should_cancel && callbacks_.should_cancel()) throw Cancelled();
      std::vector<int32_t> ids;
      for (const size_t i : active) ids.push_back(answers_[i].ids().back());
      take(steady ? steady->step(sequences_, active, ids) : decode_step(model_, sequences_, active, ids, cache_),
           active);
      if (callbacks_.on_progress) {
        callbacks_.on_progress("decode", std::ssize(answers_[active[0]].ids()),
                               requests_[active[0]].options.max_new_tokens);
      }
    }
    decoding.stop();
    if (steady) idle->keep(std::move(steady));
    const double decode_ms = decoding.milliseconds();
    for (Sequence& s : sequences_) s.stats.decode_ms = decode_ms;
  }

  void note_cache() {
    const int64_t row =
        2 * model_.facts.num_kv_heads * model_.facts.head_dim * static_cast<int64_t>(at::elementSize(model_.dtype));
    for (Sequence& s : sequences_) {
      s.stats.kv_bytes = 0;
      for (const int64_t tokens : s.stats.kv_tokens_per_layer) s.stats.kv_bytes += tokens * row;
    }
  }

  Result result(size_t i) {
    Sequence& s = sequences_[i];
    Result r;
    r.text = answers_[i].text();
    r.token_ids = answers_[i].ids();
    r.prompt_token_ids = s.prompt.ids;
    r.prompt = s.prompt.text;
    r.finish_reason = answers_[i].finish_reason();
    r.points = s.walk.trace(requests_[i].trace);
    r.kept = s.walk.kept_sources();
    if (s.encoding) s.stats.encode_ms += s.encoding->milliseconds();
    if (s.selecting) s.stats.select_ms += s.selecting->milliseconds();
    r.stats = std::move(s.stats);
    r.stats.prompt_tokens = s.prompt.layout->num_tokens;
    for (size_t image = 0; image < s.prompt.images.size(); ++image)
      r.stats.image_tokens.push_back(s.prompt.layout->num_image_tokens(static_cast<int>(image), true));
    r.stats.image_tokens_per_layer = image_counts(s);
    r.stats.new_tokens = std::ssize(r.token_ids);
    r.stats.peak_memory_bytes = peak_memory(model_.device);
    r.stats.threads = at::get_num_threads();
    return r;
  }

  const LoadedModel& model_;
  std::span<const Request> requests_;
  const Callbacks& callbacks_;
  std::vector<Sequence> sequences_;
  std::vector<SamplingRules> rules_;
  std::vector<Sampler> samplers_;
  std::vector<Answer> answers_;
  KvCache cache_;
  bool is_prefilled_ = false;
};

}  // namespace

PolicyPtr policy_of(const Request& request) {
  return request.custom ? request.custom : make_policy(request.policy);
}

std::vector<Result> generate_batch(const LoadedModel& model, std::span<const Request> requests,
                                   const Callbacks& callbacks, RunHooks hooks) {
  if (requests.empty()) return {};
  const c10::InferenceMode no_gradients;
  return Batch(model, requests, callbacks).run(hooks);
}

}  // namespace espalier
