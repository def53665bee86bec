// SPDX-License-Identifier: Apache-2.0
// One request from submission to result: its sequence, its sampler, its answer, and whom to tell.
#pragma once

#include <atomic>
#include <chrono>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "espalier/generation.h"
#include "runtime/answer.h"
#include "runtime/encode.h"
#include "runtime/sampler.h"
#include "runtime/sequence.h"
#include "runtime/solve_amount.h"

namespace espalier {

PolicyPtr policy_of(const Request& request);

// The callbacks of one call, which its requests share. For the thread that computes, but for cancel().
class Call {
 public:
  explicit Call(Callbacks given) : callbacks(std::move(given)) {}

  void cancel() { is_cancelled_ = true; }
  bool is_cancelled() const { return is_cancelled_; }
  // Asks the caller, until the answer was yes once.
  bool should_cancel() {
    if (!is_cancelled_ && callbacks.should_cancel && callbacks.should_cancel()) is_cancelled_ = true;
    return is_cancelled_;
  }

  const Callbacks callbacks;

 private:
  std::atomic<bool> is_cancelled_ = false;
};

// What a recording or comparison adds to a request.
struct RunExtras {
  RunWatcher* watcher = nullptr;
  at::Tensor pixel_values = {};  // a batch in place of the pictures' own
  bool uses_prefixes = false;    // looks for its beginning among those that are known, and leaves its own
};

struct RequestRun {
  // Packs the prompt and asks the policy for its plan; throws Error for what cannot be served. `index`: of the request
  // in its call.
  RequestRun(const LoadedModel& model, const Request& request, size_t index, std::shared_ptr<Call> call,
             RunExtras extras = {});
  // Another answer to the prompt of `first`, with a seed and a call of its own: goes on where the prefill of `first`
  // ends, over the same rows.
  RequestRun(const LoadedModel& model, const RequestRun& first, uint64_t seed, size_t index,
             std::shared_ptr<Call> call);
  RequestRun(const RequestRun&) = delete;
  RequestRun& operator=(const RequestRun&) = delete;

  int64_t new_tokens_left() const { return request.options.max_new_tokens - std::ssize(answer.ids()); }
  size_t num_answers() const { return 1 + samples.size(); }
  int64_t kv_bytes_of_all() const;
  // Of the prompt, while it is computed for all its answers: nobody wants it any more. should_cancel() asks the
  // callers.
  bool is_cancelled() const;
  bool should_cancel();
  // With a deadline: decides anew how much stays, before it begins. `allowed_ms` from now on, at this pace.
  void solve_amount(double allowed_ms, double pace);
  // The next token, from the model's logits, float32 [vocab]; changed in place.
  void sample(std::span<float> logits);
  Result take_result();

  const LoadedModel& model;
  const Request request;
  const size_t index;
  const std::shared_ptr<Call> call;
  at::Tensor pixel_values;
  const bool uses_prefixes;
  const PolicyPtr policy;              // as it was asked for, and as the model runs it
  std::optional<SolvedPolicy> solved;  // where that has a target
  const std::chrono::steady_clock::time_point submitted = std::chrono::steady_clock::now();
  double packing_ms = 0;  // of the time since
  PrefixPtr held = {};    // that the caller has, and that may serve
  Sequence sequence;
  Sampler sampler;
  Answer answer;
  std::vector<TokenLogprobs> logprobs;  // where they were asked for
  std::optional<Encoding> encoding;
  int64_t kv_bytes = 0;  // that prompt and answer may take
  // Where the target is one of time: when the first token is due.
  std::optional<std::chrono::steady_clock::time_point> deadline;
  std::vector<std::unique_ptr<RequestRun>> samples;  // until the end of prefill: others that answer the same prompt
  // One of the two, when it has ended.
  std::optional<Result> result;
  std::exception_ptr error;

 private:
  Sequence packed_sequence();
  int64_t most_kv_bytes() const;
};

}  // namespace espalier
