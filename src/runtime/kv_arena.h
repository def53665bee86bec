// SPDX-License-Identifier: Apache-2.0
// Where keys and values live. The arena has one buffer per decoder layer, [rows, g, d_h], and gives out blocks of rows;
// a sequence owns, per layer, a short list of runs in them. There is no global "sequence length": a policy that prunes
// before layer 2 leaves
//
//   layer 0, 1   |text|image image image image|text|        length(0) == length(1) == n
//   layer 2, …   |text|image|text|                          length(2) == n - dropped
//
// A run that others share (the demonstrations of a cached prefix) is never written again; each sequence goes on in a
// run of its own behind it.
#pragma once

#include <ATen/core/Tensor.h>

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include "model/config.h"

namespace espalier {

class KvArena;
using FreeRows = std::map<int64_t, int64_t>;  // ranges: begin -> end

int64_t bytes_per_kv_row(const DecoderConfig& config, at::ScalarType dtype);  // of one layer: key and value

// Rows [begin, begin + capacity) of one layer's buffer, free again when the block dies. `place`: what they then take
// among the free ones, so that this needs no memory.
class KvBlock {
 public:
  KvBlock(KvArena& arena, int layer, int64_t begin, int64_t capacity, FreeRows::node_type place)
      : arena_(arena), layer_(layer), begin_(begin), capacity_(capacity), place_(std::move(place)) {}
  KvBlock(const KvBlock&) = delete;
  KvBlock& operator=(const KvBlock&) = delete;
  ~KvBlock();

  int64_t begin() const { return begin_; }
  int64_t end() const { return begin_ + capacity_; }

 private:
  KvArena& arena_;
  int layer_;
  int64_t begin_, capacity_;
  FreeRows::node_type place_;
};

// Outlives its blocks. Blocks may die on any thread; all else is for the thread that computes.
class KvArena {
 public:
  KvArena(const DecoderConfig& config, at::ScalarType dtype, at::Device device);

  // First fit; the layer's buffer grows where nothing fits, which moves rows, but not their numbers.
  std::shared_ptr<const KvBlock> allocate(int layer, int64_t rows);

  const at::Tensor& key(int layer) const { return layers_[static_cast<size_t>(layer)].key; }
  const at::Tensor& value(int layer) const { return layers_[static_cast<size_t>(layer)].value; }
  // Position ids of the rows, int64 [rows]; with a sliding window only.
  const at::Tensor& position_id(int layer) const { return layers_[static_cast<size_t>(layer)].position_id; }
  int num_layers() const { return static_cast<int>(layers_.size()); }

  int64_t bytes_in_use() const;    // of the blocks that are given out
  int64_t bytes_reserved() const;  // of the buffers
  // Changes whenever a buffer moved or went: what was recorded over the old ones is void.
  int64_t generation() const { return generation_; }

 private:
  friend class KvBlock;
  struct Layer {
    at::Tensor key, value, position_id;
    FreeRows free;
    int64_t rows = 0, rows_in_use = 0;
  };
  void release(int layer, int64_t begin, int64_t end, FreeRows::node_type place);
  void grow(Layer& layer, int64_t rows);

  int64_t num_kv_heads_, head_dim_, bytes_per_row_;
  bool has_window_;
  at::TensorOptions options_;
  mutable std::mutex mutex_;
  std::vector<Layer> layers_;
  std::atomic<int64_t> generation_ = 0;
};

// Rows [begin, begin + length) of the layer's buffer, in the order of the sequence.
struct KvRun {
  std::shared_ptr<const KvBlock> block;
  int64_t begin = 0;
  int64_t length = 0;
  bool is_shared = false;  // with a cached prefix: not written any more

  // Of a prompt whose cache is cut again while decoding: nothing follows in this run. Behind its rows are `held` ones,
  // which nothing attends to until they come back.
  bool is_selected() const { return tokens.defined(); }
  int64_t held = 0;
  int64_t num_tokens = 0;  // of the prompt, as the layer saw it
  at::Tensor tokens = {};  // int64 [g, length + held]: which of them stands at each row
};

// One sequence's rows of every layer.
class SequenceKv {
 public:
  explicit SequenceKv(int num_layers) : layers_(static_cast<size_t>(num_layers)) {}

  std::span<const KvRun> runs(int layer) const { return layers_[static_cast<size_t>(layer)]; }
  int num_layers() const { return static_cast<int>(layers_.size()); }
  int64_t length(int layer) const;  // of all runs: what is attended to
  int64_t rows(int layer) const;    // in memory, held ones among them

  // `count` rows behind the others, in a run of the sequence's own; returns the first of them. `room`: rows that are
  // likely to follow; where they fit nowhere later, the run moves. `most`: no more of them will.
  int64_t extend(KvArena& arena, int layer, int64_t count, int64_t room, int64_t most);
  // A cut at the cache: rows int64 [g, k'], ascending, are those of the sequence's own that stay in each KV head; the
  // memory of the others is given back but for `room`.
  void keep(KvArena& arena, int layer, const at::Tensor& rows, int64_t room);
  // A cut that is made again while decoding, of a prompt whose rows are all the sequence's own: tokens int64 [g, k'],
  // ascending, are those of the prompt's `num_tokens` that are attended to from now on. The others are held, or given
  // back and never named again.
  void select(KvArena& arena, int layer, const at::Tensor& tokens, int64_t num_tokens, bool holds);
  // The first lengths[l] rows of layers 0 … lengths.size() - 1, from now on shared. No layer may have been cut at the
  // cache.
  SequenceKv share(std::span<const int64_t> lengths);
  // The same as they are, for a part of what is shared already.
  SequenceKv front(std::span<const int64_t> lengths) const;

 private:
  static void rewrite(KvArena& arena, int layer, KvRun& run, const at::Tensor& rows, int64_t capacity);

  std::vector<std::vector<KvRun>> layers_;
};

}  // namespace espalier
