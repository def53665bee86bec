// SPDX-License-Identifier: Apache-2.0
#include "runtime/request_run.h"

#include <algorithm>
#include <string>

#include "espalier/error.h"
#include "espalier/target.h"
#include "runtime/planned_rows.h"
#include "runtime/stopwatch.h"

namespace espalier {

namespace {

const Request& checked(const Request& request) {
  if (request.options.max_new_tokens < 0)
    throw Error("max_new_tokens: 0 or more was expected, got " + std::to_string(request.options.max_new_tokens));
  return request;
}

Request with_seed(Request request, uint64_t seed) {
  request.options.seed = seed;
  return request;
}

// What a prefix knows a picture by: its pixels, what is made of them, and what of it is pinned.
ImageCache::Key key_of_picture(const ImagePart& part, const ImagePlan& plan) {
  ImageCache::Key key = ImageCache::key_of(*part.image, plan);
  if (part.pin_all) key.first += " all";
  for (const Region& pin : part.pins)
    for (const int edge : {pin.x0, pin.y0, pin.x1, pin.y1}) key.first += " " + std::to_string(edge);
  return key;
}

// Wants every token to run.
bool sees_all(const RunWatcher* watcher) {
  return watcher && (watcher->watches_vision() || watcher->watches_pixels() || watcher->watches_layers());
}

}  // namespace

PolicyPtr policy_of(const Request& request) {
  return request.custom ? request.custom : make_policy(request.policy);
}

RequestRun::RequestRun(const LoadedModel& loaded, const Request& asked, size_t index_in_call,
                       std::shared_ptr<Call> shared_call, RunExtras extras)
    : model(loaded),
      request(checked(asked)),
      index(index_in_call),
      call(std::move(shared_call)),
      pixel_values(std::move(extras.pixel_values)),
      uses_prefixes(extras.uses_prefixes && !sees_all(extras.watcher) && !pixel_values.defined()),
      policy(for_model(policy_of(request), model.facts)),
      sequence(packed_sequence()),
      sampler(sampling_rules(request.options, model.generation), request.options.seed, sequence.prompt.ids),
      answer(model.tokenizer, request.options, model.generation.eos_ids, index, call->callbacks.on_text) {
  constexpr int64_t kMostRoom = 256;  // made ahead, since most answers end early
  sequence.watcher = extras.watcher;
  sequence.custom = request.custom;
  sequence.salt = request.salt;
  if (uses_prefixes)
    for (size_t i = 0; i < sequence.prompt.images.size(); ++i)
      sequence.picture_keys.push_back(key_of_picture(sequence.prompt.images[i], sequence.prompt.plans[i]));
  sequence.room = std::min(request.options.max_new_tokens, kMostRoom);
  sequence.most_generated = request.options.max_new_tokens;
  if (call->callbacks.on_point)
    sequence.on_acted = [this] { call->callbacks.on_point(index, sequence.walk.last_point()); };
  kv_bytes = most_kv_bytes();
  if (const auto target = target_of(*policy); target && target->ttft_ms)
    deadline = submitted + std::chrono::round<std::chrono::steady_clock::duration>(
                               std::chrono::duration<double, std::milli>(*target->ttft_ms));
}

Sequence RequestRun::packed_sequence() {
  Stopwatch packing;
  PackedPrompt packed = pack_prompt(model, request.prompt, request.options.max_new_tokens, policy.get());
  PolicyPtr chosen = policy;
  if (const std::optional<Target> target = target_of(*policy)) {
    solved = espalier::solve_amount({model, request, packed, *policy}, target->ttft_ms);
    chosen = solved->policy;
    if (solved->reshapes) packed = pack_prompt(model, request.prompt, request.options.max_new_tokens, chosen.get());
  }
  Sequence made(model, std::move(packed), std::move(chosen));
  packing.stop();
  packing_ms = packing.milliseconds();
  made.stats.encoded(packing_ms);
  return made;
}

int64_t RequestRun::most_kv_bytes() const {
  const int layers = model.config.decoder.num_layers;
  const PlannedRows rows =
      planned_rows(sequence.walk.steps(), sequence.walk.policy().row_breaks_compete(), *sequence.prompt.layout, layers);
  return rows.most_cached(request.options.max_new_tokens) * bytes_per_kv_row(model.config.decoder, model.dtype);
}

void RequestRun::solve_amount(double allowed_ms, double pace) {
  solved->amount.waited_ms =
      std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - submitted).count() - packing_ms;
  if (solved->reshapes) return;  // what becomes of its pictures was decided when they were planned
  const double waited_ms = solved->amount.waited_ms;
  const std::string before = solved->amount.policy;
  // Packing is behind it, and part of what is expected.
  solved = espalier::solve_amount({model, request, sequence.prompt, *policy, pace}, allowed_ms + packing_ms);
  solved->amount.waited_ms = waited_ms;
  if (solved->amount.policy == before) return;
  sequence.follow(model, solved->policy);
  kv_bytes = most_kv_bytes();
}

RequestRun::RequestRun(const LoadedModel& loaded, const RequestRun& first, uint64_t seed, size_t index_in_call,
                       std::shared_ptr<Call> own_call)
    : model(loaded),
      request(with_seed(first.request, seed)),
      index(index_in_call),
      call(std::move(own_call)),
      uses_prefixes(false),
      policy(first.policy),
      sequence(first.sequence),
      sampler(sampling_rules(request.options, model.generation), seed, sequence.prompt.ids),
      answer(model.tokenizer, request.options, model.generation.eos_ids, index, call->callbacks.on_text),
      kv_bytes(model.config.decoder.num_layers * request.options.max_new_tokens *
               bytes_per_kv_row(model.config.decoder, model.dtype)) {
  sequence.on_acted = {};
}

int64_t RequestRun::kv_bytes_of_all() const {
  int64_t bytes = kv_bytes;
  for (const auto& other : samples) bytes += other->kv_bytes;
  return bytes;
}

bool RequestRun::is_cancelled() const {
  return call->is_cancelled() &&
         std::ranges::all_of(samples, [](const auto& other) { return other->call->is_cancelled(); });
}

bool RequestRun::should_cancel() {
  call->should_cancel();
  for (const auto& other : samples) other->call->should_cancel();
  return is_cancelled();
}

void RequestRun::sample(std::span<float> logits) {
  const std::optional<int64_t> top = request.options.top_logprobs;
  const std::vector<float> own = top ? std::vector(logits.begin(), logits.end()) : std::vector<float>();
  const int32_t id = sampler.next(logits);
  if (top) logprobs.push_back(logprobs_of(own, id, *top));
  if (call->callbacks.on_token) call->callbacks.on_token(index, id, top ? &logprobs.back() : nullptr);
  answer.add(id);
}

Result RequestRun::take_result() {
  if (encoding) encoding->record_times();  // it ended before its prefill did
  Result r;
  r.text = answer.text();
  r.token_ids = answer.ids();
  r.logprobs = std::move(logprobs);
  r.prompt_token_ids = sequence.prompt.ids;
  r.prompt = sequence.prompt.text;
  r.policy = sequence.walk.policy().spec();
  r.finish_reason = answer.finish_reason();
  r.points = sequence.walk.trace(request.trace);
  r.kept = sequence.walk.kept_sources();
  r.stats = sequence.stats.finish(*sequence.prompt.layout, std::ssize(r.token_ids));
  if (solved) r.stats.solved = solved->amount;
  return r;
}

}  // namespace espalier
