// SPDX-License-Identifier: Apache-2.0
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <vector>

#include "espalier/ops.h"
#include "kernels/ops/attention/attention.h"
#include "kernels/ops/attention/attention_arguments.h"
#include "kernels/support/chosen_kernels.h"
#include "kernels/support/dispatch.h"

namespace espalier::kernels {

namespace {

// The scores of one row are held in a block this long, so that no row of n scores is ever needed.
constexpr int64_t kPlainBlock = 128;

template <typename T>
void plain_rows(const AttentionProblem& p, const AttentionSequence& seq, int64_t head, int64_t row_begin,
                int64_t row_end) {
  const int64_t d = p.head_dim, kv_head = head / (p.num_heads / p.num_kv_heads);
  const T* keys = static_cast<const T*>(p.key.data) + seq.key_begin * p.key.row_stride + kv_head * p.key.head_stride;
  const T* values =
      static_cast<const T*>(p.value.data) + seq.key_begin * p.value.row_stride + kv_head * p.value.head_stride;
  std::vector<float> query(d), sum(d);
  float score[kPlainBlock];
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t query_row = seq.query_begin + row;
    const T* q = static_cast<const T*>(p.query.data) + query_row * p.query.row_stride + head * p.query.head_stride;
    std::copy(q, q + d, query.begin());
    std::fill(sum.begin(), sum.end(), 0.0F);
    const int64_t end = p.is_causal ? std::max<int64_t>(0, row + 1 + seq.num_keys - seq.num_queries) : seq.num_keys;
    float peak = -std::numeric_limits<float>::infinity(), mass = 0;
    for (int64_t begin = 0; begin < end; begin += kPlainBlock) {
      const int64_t count = std::min(kPlainBlock, end - begin);
      float block_peak = peak;
      for (int64_t j = 0; j < count; ++j) {
        const T* k = keys + (begin + j) * p.key.row_stride;
        float dot = 0;
        for (int64_t c = 0; c < d; ++c) dot += query[c] * static_cast<float>(k[c]);
        const bool visible =
            p.window == 0 || p.query_position[query_row] - p.window < p.key_position[seq.key_begin + begin + j];
        score[j] = visible ? dot * p.scale : -std::numeric_limits<float>::infinity();
        block_peak = std::max(block_peak, score[j]);
      }
      if (block_peak == -std::numeric_limits<float>::infinity()) continue;
      const float correction = std::exp(peak - block_peak);
      peak = block_peak;
      mass *= correction;
      for (float& s : sum) s *= correction;
      for (int64_t j = 0; j < count; ++j) {
        const T* v = values + (begin + j) * p.value.row_stride;
        const float weight = std::exp(score[j] - peak);
        mass += weight;
        for (int64_t c = 0; c < d; ++c) sum[c] += weight * static_cast<float>(v[c]);
      }
    }
    T* out = static_cast<T*>(p.output) + (query_row * p.num_heads + head) * d;
    for (int64_t c = 0; c < d; ++c) out[c] = static_cast<T>(mass > 0 ? sum[c] / mass : 0.0F);
    p.lse[head * p.num_query_rows + query_row] =
        mass > 0 ? peak + std::log(mass) : -std::numeric_limits<float>::infinity();
  }
}

// Calls work(i, slot) for each i of [0, count), handed out one at a time: items differ in cost, and a fixed split
// leaves a core waiting. No two calls of one slot, a number below at::get_num_threads(), run at once.
template <typename Work>
void parallel_items(int64_t count, const Work& work) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), count);
  at::parallel_for(0, threads, 1, [&](int64_t slot, int64_t) {
    for (int64_t i = next++; i < count; i = next++) work(i, slot);
  });
}

struct PlainItem {
  const AttentionSequence* sequence;
  int64_t head, row_begin, row_end;
};

void run_plain(const AttentionProblem& p, const AttentionSequence* sequences, int64_t count) {
  constexpr int64_t kRows = 16;
  std::vector<PlainItem> items;
  for (const AttentionSequence* s = sequences; s != sequences + count; ++s)
    for (int64_t head = 0; head < p.num_heads; ++head)
      for (int64_t row = 0; row < s->num_queries; row += kRows)
        items.push_back({s, head, row, std::min(row + kRows, s->num_queries)});
  parallel_items(static_cast<int64_t>(items.size()), [&](int64_t i, int64_t) {
    attention_plain(p, *items[i].sequence, items[i].head, items[i].row_begin, items[i].row_end);
  });
}

// The blocked form. A sequence with few stacked rows (decoding) is cut along its keys, and its parts are joined at the
// end; one with many is cut into blocks of rows, over keys packed once, and along its keys as well where the blocks are
// too few for many cores (rows behind a long prefix, few KV heads). All cuts depend on the sequence alone.
class BlockedRun {
 public:
  BlockedRun(const AttentionKernels& kernels, const AttentionProblem& problem, const AttentionSequence* sequences,
             int64_t count)
      : kernels_(kernels),
        problem_(problem),
        ratio_(problem.num_heads / problem.num_kv_heads),
        pass_(kernels.heads_per_pass(problem)) {
    for (int64_t s = 0; s < count; ++s)
      if (sequences[s].num_queries > 0) plan(sequences[s]);
    std::stable_sort(items_.begin(), items_.end(), [](const Item& a, const Item& b) { return a.cost > b.cost; });
  }

  void run() {
    packed_ = at::empty({packed_bytes_}, at::kByte);
    partials_ = at::empty({num_partial_floats_}, at::kFloat);
    parallel_items(static_cast<int64_t>(packs_.size()), [&](int64_t i, int64_t) { pack(packs_[i]); });
    const int64_t slot_floats = kernels_.partial_floats(problem_, kRowBlock);
    const int64_t slot_bytes = slot_floats * sizeof(float) + kernels_.scratch_bytes(problem_, kRowBlock);
    const at::Tensor slots = at::empty({slot_bytes * at::get_num_threads()}, at::kByte);
    parallel_items(static_cast<int64_t>(items_.size()), [&](int64_t i, int64_t slot) {
      auto* partial = reinterpret_cast<float*>(slots.data_ptr<uint8_t>() + slot * slot_bytes);
      if (planned_[items_[i].planned].packed_offset >= 0)
        attend_block(items_[i], partial, partial + slot_floats);
      else
        attend_split(items_[i], partial + slot_floats);
    });
    parallel_items(static_cast<int64_t>(joins_.size()), [&](int64_t i, int64_t) { join(joins_[i]); });
  }

 private:
  static constexpr int64_t kRowBlock = 96, kPackTiles = 8;
  // Keys of a part: of a single group of rows, which only reads them; of a few groups; of a block of rows.
  static constexpr int64_t kGroupSplitKeys = 512, kSplitKeys = 256, kBlockSplitKeys = 1024;
  static constexpr int64_t kEnoughBlocks = 32;  // of a sequence, to keep many cores busy without cutting its keys

  struct Planned {
    const AttentionSequence* sequence;
    std::vector<AttentionTilePositions> positions;
    int64_t num_tiles, packed_offset;  // -1: packed on the way
  };
  // Blocks of rows: of one KV head, finished at once where partial_offset is -1. Parts of the keys: of the KV heads
  // from range.kv_head on, whose partial results begin at partial_offset, `partial_stride` apart.
  struct Item {
    size_t planned;
    AttentionRange range;
    int64_t num_kv_heads, partial_offset, partial_stride;
    int64_t cost;
  };
  struct Pack {
    size_t planned;
    int64_t head_begin, head_end, tile_begin, tile_end;
  };
  struct Join {
    const AttentionSequence* sequence;
    AttentionRange range;
    int64_t partial_offset, num_partials;
  };

  void plan(const AttentionSequence& s) {
    const int64_t rows = s.num_queries * ratio_, tile = kernels_.keys_per_tile;
    const int64_t num_tiles = (s.num_keys + tile - 1) / tile;
    const bool is_short = rows <= kRowBlock;
    planned_.push_back({&s, tile_positions(s), num_tiles, is_short ? -1 : packed_bytes_});
    if (is_short) return plan_splits(s, rows);
    for (int64_t head = 0; head < problem_.num_kv_heads; head += pass_)
      for (int64_t first = 0; first < num_tiles; first += kPackTiles)
        packs_.push_back({planned_.size() - 1, head, std::min(head + pass_, problem_.num_kv_heads), first,
                          std::min(first + kPackTiles, num_tiles)});
    for (int64_t kv_head = 0; kv_head < problem_.num_kv_heads; ++kv_head) plan_blocks(s, kv_head, rows);
    packed_bytes_ += 2 * problem_.num_kv_heads * kernels_.packed_bytes(problem_, num_tiles);
  }

  void plan_splits(const AttentionSequence& s, int64_t rows) {
    const int64_t part_keys = rows <= kernels_.rows_per_group ? kGroupSplitKeys : kSplitKeys;
    const int64_t parts = std::max<int64_t>(1, (s.num_keys + part_keys - 1) / part_keys);
    const int64_t floats = kernels_.partial_floats(problem_, rows);
    for (int64_t head = 0; head < problem_.num_kv_heads; head += pass_)
      for (int64_t part = 0; part < parts; ++part) {
        const int64_t begin = part * part_keys, end = std::min(begin + part_keys, s.num_keys);
        const int64_t heads = std::min(pass_, problem_.num_kv_heads - head);
        items_.push_back({planned_.size() - 1,
                          {head, 0, rows, begin, end},
                          heads,
                          num_partial_floats_ + (head * parts + part) * floats,
                          parts * floats,
                          heads * rows * (end - begin)});
      }
    for (int64_t head = 0; head < problem_.num_kv_heads; ++head, num_partial_floats_ += parts * floats)
      joins_.push_back({&s, {head, 0, rows, 0, s.num_keys}, num_partial_floats_, parts});
  }

  void plan_blocks(const AttentionSequence& s, int64_t kv_head, int64_t rows) {
    const bool is_cut = problem_.num_kv_heads * ((rows + kRowBlock - 1) / kRowBlock) < kEnoughBlocks;
    for (int64_t row = 0; row < rows; row += kRowBlock) {
      const int64_t end = std::min(row + kRowBlock, rows);
      const int64_t seen = problem_.is_causal ? (end - 1) / ratio_ + 1 + s.num_keys - s.num_queries : s.num_keys;
      const int64_t keys = std::clamp<int64_t>(seen, 0, s.num_keys);
      const auto add = [&](int64_t key_begin, int64_t key_end, int64_t partial) {
        const AttentionRange range{kv_head, row, end, key_begin, key_end};
        items_.push_back({planned_.size() - 1, range, 1, partial, 0, (end - row) * (key_end - key_begin)});
      };
      const int64_t parts = is_cut ? (keys + kBlockSplitKeys - 1) / kBlockSplitKeys : 1;
      if (parts <= 1) {
        add(0, keys, -1);
        continue;
      }
      joins_.push_back({&s, {kv_head, row, end, 0, keys}, num_partial_floats_, parts});
      for (int64_t part = 0; part < parts; ++part) {
        add(part * kBlockSplitKeys, std::min((part + 1) * kBlockSplitKeys, keys), num_partial_floats_);
        num_partial_floats_ += kernels_.partial_floats(problem_, end - row);
      }
    }
  }

  std::vector<AttentionTilePositions> tile_positions(const AttentionSequence& s) const {
    std::vector<AttentionTilePositions> tiles;
    if (problem_.window == 0) return tiles;
    const int64_t* position = problem_.key_position + s.key_begin;
    for (int64_t first = 0; first < s.num_keys; first += kernels_.keys_per_tile) {
      const int64_t last = std::min(first + kernels_.keys_per_tile, s.num_keys);
      const auto [smallest, largest] = std::minmax_element(position + first, position + last);
      tiles.push_back({*smallest, *largest});
    }
    return tiles;
  }

  uint8_t* packed(const Planned& s, int64_t kv_head, bool is_value) const {
    const int64_t bytes = kernels_.packed_bytes(problem_, s.num_tiles);
    return packed_.data_ptr<uint8_t>() + s.packed_offset + (2 * kv_head + is_value) * bytes;
  }

  void pack(const Pack& item) const {
    const Planned& s = planned_[item.planned];
    for (int64_t tile = item.tile_begin; tile < item.tile_end; ++tile)
      for (int64_t head = item.head_begin; head < item.head_end; ++head)
        kernels_.pack(problem_, *s.sequence, head, tile, packed(s, head, false), packed(s, head, true));
  }

  void attend_block(const Item& item, float* own_partial, void* scratch) const {
    const Planned& s = planned_[item.planned];
    const bool is_whole = item.partial_offset < 0;
    float* partial = is_whole ? own_partial : partials_.data_ptr<float>() + item.partial_offset;
    kernels_.start(problem_, item.range.row_end - item.range.row_begin, partial);
    kernels_.attend(problem_, *s.sequence, item.range, s.positions.data(), packed(s, item.range.kv_head, false),
                    packed(s, item.range.kv_head, true), scratch, partial);
    if (is_whole) kernels_.finish(problem_, *s.sequence, item.range, partial, 1);
  }

  void attend_split(const Item& item, void* scratch) {
    const Planned& s = planned_[item.planned];
    const int64_t rows = item.range.row_end;
    const int64_t step = rows <= kernels_.rows_per_group ? kernels_.keys_per_tile : kernels_.keys_per_block;
    const auto partial = [&](int64_t head) {
      return partials_.data_ptr<float>() + item.partial_offset + head * item.partial_stride;
    };
    for (int64_t head = 0; head < item.num_kv_heads; ++head) kernels_.start(problem_, rows, partial(head));
    for (int64_t key = item.range.key_begin; key < item.range.key_end; key += step)
      for (int64_t head = 0; head < item.num_kv_heads; ++head)
        kernels_.attend(problem_, *s.sequence,
                        {item.range.kv_head + head, 0, rows, key, std::min(key + step, item.range.key_end)},
                        s.positions.data(), nullptr, nullptr, scratch, partial(head));
  }

  void join(const Join& item) const {
    kernels_.finish(problem_, *item.sequence, item.range, partials_.data_ptr<float>() + item.partial_offset,
                    item.num_partials);
  }

  const AttentionKernels& kernels_;
  const AttentionProblem& problem_;
  const int64_t ratio_, pass_;
  std::vector<Planned> planned_;
  std::vector<Item> items_;
  std::vector<Pack> packs_;
  std::vector<Join> joins_;
  int64_t packed_bytes_ = 0, num_partial_floats_ = 0;
  at::Tensor packed_, partials_;
};

const AttentionKernels* kernels_at(CpuLevel level, ElementType dtype) {
  if (level == CpuLevel::kAmx)
    if (const AttentionKernels* tiles = attention_amx(dtype)) return tiles;
  if (level >= CpuLevel::kAvx512) return attention_avx512(dtype);
  return level == CpuLevel::kAvx2 ? attention_avx2(dtype) : nullptr;
}

}  // namespace

void attention_plain(const AttentionProblem& problem, const AttentionSequence& sequence, int64_t head,
                     int64_t row_begin, int64_t row_end) {
  switch (problem.dtype) {
    case ElementType::kFloat32:
      return plain_rows<float>(problem, sequence, head, row_begin, row_end);
    case ElementType::kBFloat16:
      return plain_rows<c10::BFloat16>(problem, sequence, head, row_begin, row_end);
    case ElementType::kFloat16:
      return plain_rows<c10::Half>(problem, sequence, head, row_begin, row_end);
  }
}

void attention_cpu(const AttentionProblem& problem, const AttentionSequence* sequences, int64_t count, CpuLevel level) {
  if (const AttentionKernels* kernels = kernels_at(level, problem.dtype))
    BlockedRun(*kernels, problem, sequences, count).run();
  else
    run_plain(problem, sequences, count);
}

std::string_view attention_cpu_name(ElementType dtype, CpuLevel level) {
  const AttentionKernels* kernels = kernels_at(level, dtype);
  return kernels != nullptr ? kernels->name : "plain";
}

}  // namespace espalier::kernels

namespace espalier::ops {

namespace {

std::tuple<Tensor, Tensor> attention_cpu(const AttentionCall& in) {
  check_attention(in);
  kernels::note_kernel("attention", attention_kernel_name(in));
  if (attention_needs_composed(in)) return attention_composed(in);
  const AttentionTensors tensors(in);
  const std::vector<kernels::AttentionSequence> sequences = attention_sequences(in);
  kernels::attention_cpu(tensors.problem, sequences.data(), in.key_begin.size(0), kernels::cpu_level());
  return {tensors.output, tensors.lse};
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CPU, m) {
  m.impl("attention", Unpacked<AttentionSignature, attention_cpu>::call);
}

}  // namespace espalier::ops
