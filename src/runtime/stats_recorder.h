// SPDX-License-Identifier: Apache-2.0
// The only writer of a request's Stats: the stages tell it what happened, and it does the counting.
#pragma once

#include <vector>

#include "espalier/generation.h"
#include "espalier/token_layout.h"
#include "model/config.h"
#include "runtime/kv_arena.h"

namespace espalier {

class StatsRecorder {
 public:
  StatsRecorder(const DecoderConfig& config, const PromptLayout& prompt, int64_t bytes_per_kv_row);

  void encoded(double milliseconds) { stats_.encode_ms += milliseconds; }
  void selected(double milliseconds) { stats_.select_ms += milliseconds; }
  void prefilled(double milliseconds) { stats_.prefill_ms += milliseconds; }
  void decoded(double milliseconds) { stats_.decode_ms += milliseconds; }
  void probed(double flops) { stats_.probe_flops += flops; }
  // The rows that enter the next decoder layer in prefill: the image of each, -1 for text, int64 [n]; and how many of
  // them are computed rather than found in a cache.
  void entered_layer(const at::Tensor& image_of_tokens, int64_t computed);
  void reused(int64_t prompt_tokens) { stats_.reused_tokens = prompt_tokens; }
  void cached(const SequenceKv& kv);  // behind prefill
  void grown(const SequenceKv& kv);   // behind each generated token
  double first_token_ms() const { return stats_.encode_ms + stats_.select_ms + stats_.prefill_ms; }
  // What is known of the same prompt from another answer to it.
  void take_over(const StatsRecorder& other);
  Stats finish(const PromptLayout& prompt, int64_t new_tokens);

 private:
  int64_t bytes_of(const SequenceKv& kv) const;

  const DecoderConfig& config_;
  int64_t bytes_per_kv_row_;
  Stats stats_;
  std::vector<at::Tensor> image_of_tokens_;  // [layer], one tensor where nothing left between two layers
};

}  // namespace espalier
