// SPDX-License-Identifier: Apache-2.0
// What can be asked of a generation and what comes back: plain structs.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "espalier/prompt.h"
#include "espalier/trace.h"

namespace espalier {

class PruningPolicy;

// Unset options come from the checkpoint's generation_config.json.
struct GenerationOptions {
  int64_t max_new_tokens = 128;
  bool greedy = false;  // plain argmax: no sampling, no penalty
  std::optional<bool> do_sample = {};
  std::optional<double> temperature = {};         // > 0
  std::optional<int64_t> top_k = {};              // 0: off
  std::optional<double> top_p = {};               // in (0, 1]
  std::optional<double> repetition_penalty = {};  // > 0; counts every id of the prompt too
  uint64_t seed = 0;                              // same seed, same tokens, whatever else is in the batch
  std::vector<std::string> stop = {};  // generation ends before the first of these; it is not part of the text
  bool ignore_eos = false;
  // Set: the result says how likely each new token was, and so many alternatives, 0 to 20.
  std::optional<int64_t> top_logprobs = {};
};

// One question: what is asked, what of its pictures stays, and how the answer is made.
struct Request {
  Prompt prompt = {};
  std::string policy = "none";                       // a spec string, or
  std::shared_ptr<const PruningPolicy> custom = {};  // a policy of the caller's own, which then wins
  GenerationOptions options = {};
  std::string salt = {};  // beginnings are used again only among requests of equal salt
  bool trace = false;     // fill all of Result::points (costs copies from the device)
};

// Natural logarithms of softmax(logits), before penalty, temperature and the cuts of sampling.
struct TokenLogprobs {
  struct Alternative {
    int32_t id = 0;
    float logprob = 0;
    bool operator==(const Alternative&) const = default;
  };
  int32_t id = 0;  // the token that was taken
  float logprob = 0;
  std::vector<Alternative> top;  // the likeliest first, ties to the lower id; the token itself may be among them
  bool operator==(const TokenLogprobs&) const = default;
};

// Why an answer ends: its end token, max_new_tokens, one of `stop`, a callback that said kStop, or one that cancelled.
// A cancelled result holds the text and tokens that there were until then.
enum class FinishReason : uint8_t { kEos, kLength, kStopString, kStopped, kCancelled };
// As JSON outputs write it: "eos", "length", "stop_string", "stopped", "cancelled".
std::string_view name_of(FinishReason reason);

// How much stayed where the policy has a target (target.h), and what that was expected to cost.
struct SolvedAmount {
  std::string policy;  // that ran: with its amount, or "none" where nothing had to leave or leaving
                       // would not have paid
  bool fits = true;    // false: the least amount, or none, is expected to take longer than allowed
  std::optional<double> predicted_ms = {};  // encode, select and prefill; with a target of time
  std::optional<double> allowed_ms = {};    // for the same: what is left of the target, shared with those that wait
  double waited_ms = 0;                     // from submission to its start
  int64_t kv_bytes = 0;                     // of the prompt and the longest answer, at most
};

// What a request cost. Lists by layer are of the decoder, lists by image in the order of the prompt.
struct Stats {
  int64_t prompt_tokens = 0;                                 // with images expanded, before pruning
  std::vector<int64_t> image_tokens;                         // at entry, for each image
  std::vector<std::vector<int64_t>> image_tokens_per_layer;  // [layer][image] entering each decoder layer
  std::vector<int64_t> tokens_per_layer;                     // entering each decoder layer in prefill, text included
  std::vector<int64_t> kv_tokens_per_layer;                  // cached after prefill, held-back ones among them
  int64_t reused_tokens = 0;                                 // of the prompt, found in the prefix cache
  int64_t new_tokens = 0;
  // Milliseconds of wall clock. They do not overlap; the first three add up to the time to the first token.
  double encode_ms = 0;               // bytes to decoder input: pictures, tokenizer, vision tower, projector
  double select_ms = 0;               // deciding and applying, at every site
  double prefill_ms = 0;              // decoder up to the first token, without select
  double decode_ms = 0;               // all later tokens
  double prefill_flops = 0;           // of the decoder layers, attention counted causally
  double prefill_flops_unpruned = 0;  // the same without pruning
  double probe_flops = 0;             // what the policy's signals cost
  int64_t kv_bytes = 0;               // after prefill
  int64_t kv_bytes_unpruned = 0;
  int64_t kv_bytes_most = 0;      // after prefill and after each generated token, the most
  int64_t peak_memory_bytes = 0;  // of the process (CPU) or the device allocator (CUDA)
  int threads = 0;
  std::optional<SolvedAmount> solved = {};
  std::vector<std::pair<std::string, std::string>> kernels;  // op -> kernel that was chosen
};

// The answer to one request, and what became of its image tokens.
struct Result {
  std::string text;
  std::vector<int32_t> token_ids;         // new tokens; the end token, if one came, is the last
  std::vector<int32_t> prompt_token_ids;  // each image placeholder expanded to its tokens
  std::vector<TokenLogprobs> logprobs;    // one for each of token_ids, with GenerationOptions::top_logprobs
  std::string prompt;                     // before expansion
  std::string policy;                     // that ran: with what the model's folder sets, and a solved amount
  FinishReason finish_reason = FinishReason::kLength;
  // trace.h: what is kept, and with Request::trace the rest, points while decoding among it.
  std::vector<PointTrace> points;
  std::vector<int64_t> kept;  // source indices of the image tokens that survive all points
  Stats stats;
};

// kStop ends the request with FinishReason::kStopped, kCancel with kCancelled. Both take effect at once.
enum class Continue : uint8_t { kGo, kStop, kCancel };

// Called with each piece of text as it becomes certain, on the thread that generates; what it answers concerns this one
// request. `request` is its index in the batch.
using TextCallback = std::function<Continue(size_t request, std::string_view piece)>;
// Called with each new token, before the text that it makes certain. `logprobs`: with GenerationOptions::top_logprobs,
// else null.
using TokenCallback = std::function<void(size_t request, int32_t id, const TokenLogprobs* logprobs)>;
// Asked at least once per layer in prefill and once per image in encode; true cancels every request of the call, each
// with FinishReason::kCancelled and what it has so far.
using CancelCheck = std::function<bool()>;
// done of total, for progress bars; `stage` is "load", "encode", "prefill" or "decode".
using Progress = std::function<void(std::string_view stage, int64_t done, int64_t total)>;

// The prompt before anything leaves it, once a request, and each point as soon as its verdict has been applied, on the
// thread that generates. They cost copies from the device, a time that no stage of Stats counts.
using PromptTraceCallback = std::function<void(size_t request, const PromptTrace&)>;
using PointTraceCallback = std::function<void(size_t request, const PointTrace&)>;

// What a caller is told and asked while requests run; none has to be there. All of them run on the thread that
// computes, and what one throws ends the request that it was called for.
struct Callbacks {
  TextCallback on_text = {};
  CancelCheck should_cancel = {};
  Progress on_progress = {};
  PromptTraceCallback on_prompt = {};
  PointTraceCallback on_point = {};
  TokenCallback on_token = {};
  // Of a Scheduler: the request has ended, and its ticket's result() does not wait. It must not throw.
  std::function<void(size_t request)> on_end = {};
};

}  // namespace espalier
