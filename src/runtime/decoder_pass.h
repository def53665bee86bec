// SPDX-License-Identifier: Apache-2.0
// A set of sequences on its way through the decoder layers, packed behind each other: whole prompts, or one generated
// token each. It runs as far as it is told and can stop behind any layer, so that others get their turn between two. In
// prefill every policy acts at its own points on the way, and what leaves one sequence leaves it alone.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <exception>
#include <span>
#include <utility>
#include <vector>

#include "model/decoder_layers.h"
#include "runtime/device_stopwatch.h"
#include "runtime/kv_arena.h"
#include "runtime/sequence.h"

namespace espalier {

class DecoderPass {
 public:
  // Prefill of encoded sequences, whose streams it takes.
  DecoderPass(const LoadedModel& model, KvArena& arena, std::vector<Sequence*> sequences);
  // One generated token for each of prefilled sequences.
  DecoderPass(const LoadedModel& model, KvArena& arena, std::vector<Sequence*> sequences, std::span<const int32_t> ids);

  // Layers from depth() to `layer` - 1.
  void run_to(int layer);
  int depth() const { return depth_; }
  const std::vector<Sequence*>& sequences() const { return sequences_; }

  // A sequence whose policy failed, with what was thrown. In prefill it has left the pass; while decoding its logits
  // mean nothing.
  struct Failure {
    Sequence* sequence;
    std::exception_ptr error;
  };
  std::vector<Failure> take_failures() { return std::exchange(failures_, {}); }
  void leave(const Sequence* sequence);

  // Behind the last layer: the logits of each sequence's last token, [sequences, vocab]. Closes their statistics.
  at::Tensor finish();

 private:
  struct Steps;  // what happens between the parts of a layer, for run_layers()

  int64_t size() const { return std::ssize(sequences_); }
  at::Tensor rows_of(const at::Tensor& packed, size_t s) const { return packed.slice(0, begin_[s], begin_[s + 1]); }
  void set_counts(const std::vector<int64_t>& counts);

  // The packed rows back to their streams, and together again with the positions that the layouts have now.
  void unpack();
  void pack();
  void remove(const std::vector<size_t>& sequences);

  bool any_acts(Site site, int layer) const;
  void act(Site site, int layer);
  void act_on_cache(int layer);
  void act_again(int layer, const at::Tensor& query);
  void act_again(Sequence& sequence, int layer, const at::Tensor& query);
  void cut_cache(Sequence& sequence, int layer, const TokenLayout& layout, const PolicyWalk::Outcome& outcome) const;
  template <typename Act>
  void attempt(size_t s, const Act& act);
  std::vector<at::Tensor> signals_for(Sequence& sequence, const at::Tensor& hidden, const Rotary& rotary);
  void acted(const Sequence& sequence);
  // Where the policy begins to look at the whole request: a cached prefix joins, and one to be cached is taken.
  bool stands_at_boundary(const Sequence& sequence, int layer) const;
  bool pass_boundary(Sequence& sequence, int layer);
  void make_prefixes(Sequence& sequence);
  void note_prefix(Sequence& sequence, int layer) const;

  void turn_tokens(int layer);
  void enter_layer(int layer);
  void write_rows(int layer, const QueryKeyValue& qkv);
  std::pair<at::Tensor, at::Tensor> attend_runs(int layer, const at::Tensor& query) const;
  void keep_traces(int layer, const QueryKeyValue& qkv, const at::Tensor& lse);
  bool only_last_rows_matter(int layer) const;
  at::Tensor last_rows() const;

  const LoadedModel& model_;
  const DecoderConfig& config_;
  KvArena& arena_;
  std::vector<Sequence*> sequences_;
  bool is_prefill_;
  int depth_ = 0;
  LayerRows rows_;
  std::vector<int64_t> begin_;           // [sequences + 1]: rows of each in the packed row
  at::Tensor query_begin_;               // the same
  at::Tensor position_id_;               // int64 [n] or [3, n], of rows_
  std::vector<int64_t> token_position_;  // decoding: what position_id_ was made of
  std::vector<size_t> failed_;           // of sequences_, in prefill until they are removed
  std::vector<Failure> failures_;
  DeviceStopwatch total_, selecting_;
};

}  // namespace espalier
