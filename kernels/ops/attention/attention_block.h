// SPDX-License-Identifier: Apache-2.0
// The blocked online-softmax attention, written once over an instruction set `Isa` and a number format `Format`.
// Included by attention_avx2.cpp, attention_avx512.cpp and attention_amx.cpp only; all of it is in an anonymous
// namespace, so that no unit runs another's instructions.
//
// Both products, Q·Kᵀ and P·V, are one matrix kernel: a few rows read by broadcast, times packed columns, with the sums
// in registers. A format with matrix registers brings both products of a whole group (kGroupRows of more than
// kVectorRows) and leaves those of fewer rows to that kernel.
//   packed key    [tile][step of kPair dimensions][key of the tile][kPair]
//   packed value  [step of kPair keys][dimension][kPair]
// kPair numbers of a format make one 32-bit word: 2 for bf16 dot products, 1 for float32.
#pragma once

#include <math.h>
#include <stdint.h>

#include "kernels/ops/attention/attention.h"

namespace espalier::kernels {
namespace {

constexpr int64_t kVectorRows = 6;  // whose sums the vector registers hold
constexpr float kInfinity = __builtin_inff();
constexpr float kLog2E = 1.4426950408889634F, kLn2 = 0.6931471805599453F;

// What a format without matrix registers says of its groups.
struct VectorGroups {
  static constexpr int64_t kGroupRows = kVectorRows, kStepMultiple = 1;
  struct Session {
    explicit Session(int64_t) {}
  };
};

inline int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}
inline int64_t larger(int64_t a, int64_t b) {
  return a > b ? a : b;
}
inline int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// acc[r][n] += sum over steps of the word a[r][step], broadcast, times the vector b[step][n]. Strides in elements.
template <class Format, int R, int N>
[[gnu::always_inline]] inline void multiply(const typename Format::Element* a, int64_t a_stride,
                                            const typename Format::Element* b, int64_t b_stride, int64_t steps,
                                            typename Format::Isa::Vector (&acc)[R][N]) {
  using Vector = typename Format::Isa::Vector;
  constexpr int64_t kWords = Format::Isa::kLanes * Format::kPair;
  for (int64_t step = 0; step < steps; ++step, a += Format::kPair, b += b_stride) {
    Vector column[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) column[n] = Format::load_packed(b + n * kWords);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vector word = Format::broadcast(a + r * a_stride);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) acc[r][n] = Format::multiply_add(acc[r][n], word, column[n]);
    }
  }
}

// Everything that depends on the head's width alone, in elements.
template <class Format>
struct Layout {
  static constexpr int64_t kLanes = Format::Isa::kLanes, kPair = Format::kPair;
  static constexpr int64_t kTile = Format::kTileVectors * kLanes;
  static constexpr int64_t kBlock = Format::kBlockKeys;
  int64_t dim, query_stride, key_steps, value_width;

  explicit Layout(const AttentionProblem& p)
      : dim(p.head_dim),
        query_stride(round_up(dim, kLanes * kPair)),
        key_steps(round_up((dim + kPair - 1) / kPair, Format::kStepMultiple)),
        value_width(round_up(dim, kLanes)) {}
  int64_t key_tile() const { return key_steps * kTile * kPair; }
  int64_t value_tile() const { return kTile * value_width; }
};

// The unfinished result of some rows: sums of p·v, lane-wise sums of p, and the peak (largest score · log2 e) that both
// are relative to.
template <class Format>
struct Partial {
  float *sum, *mass, *peak;

  Partial(float* base, int64_t rows, const Layout<Format>& layout)
      : sum(base), mass(sum + rows * layout.value_width), peak(mass + rows * Layout<Format>::kLanes) {}
  static int64_t floats(int64_t rows, const Layout<Format>& layout) {
    return round_up(rows * (layout.value_width + Layout<Format>::kLanes + 1), 16);
  }
};

// What `attend` keeps while it works: one group's scores and probabilities, one block of packed keys and values, the
// query rows.
template <class Format>
struct Scratch {
  using Element = typename Format::Element;
  static constexpr int64_t kScores = Format::kGroupRows * Layout<Format>::kBlock;
  float* score;
  Element *probability, *key, *value, *query;

  Scratch(void* base, const Layout<Format>& layout)
      : score(static_cast<float*>(base)),
        probability(reinterpret_cast<Element*>(score + kScores)),
        key(probability + kScores),
        value(key + key_block(layout)),
        query(value + value_block(layout)) {}
  static int64_t bytes(int64_t rows, const Layout<Format>& layout) {
    const int64_t elements = kScores + key_block(layout) + value_block(layout) + rows * layout.query_stride;
    return round_up(kScores * 4 + elements * static_cast<int64_t>(sizeof(Element)), 64);
  }
  static int64_t key_block(const Layout<Format>& layout) {
    return Layout<Format>::kBlock / Layout<Format>::kTile * layout.key_tile();
  }
  static int64_t value_block(const Layout<Format>& layout) { return Layout<Format>::kBlock * layout.value_width; }
};

template <class Format>
const typename Format::Source* row_at(const AttentionRows& rows, int64_t row, int64_t head) {
  return static_cast<const typename Format::Source*>(rows.data) + row * rows.row_stride + head * rows.head_stride;
}

// ---- packing ----

// Heads whose pieces of a row make up to 4 KiB. Whole rows are read fastest (pieces of 1 KiB took 1.3 to 1.7 times as
// long from memory), but a tile of very wide ones would not stay in the L2.
template <class Format>
int64_t heads_per_pass(const AttentionProblem& p) {
  const int64_t heads = 4096 / (p.head_dim * static_cast<int64_t>(sizeof(typename Format::Source)));
  return larger(1, smaller(heads, p.num_kv_heads));
}

// A head's own rows lie far apart, which the hardware does not see coming. So while the heads of a pass are packed one
// after another, each fetches its share of the next tile of them all, in the order of memory.
template <class Format>
class NextTile {
 public:
  NextTile(const AttentionProblem& p, const AttentionRows& rows, const typename Format::Source* tile, int64_t kv_head)
      : row_bytes_(rows.row_stride * kBytes), head_bytes_(rows.head_stride * kBytes), dim_bytes_(p.head_dim * kBytes) {
    constexpr int64_t kTile = Layout<Format>::kTile;
    const int64_t pass = heads_per_pass<Format>(p), place = kv_head % pass;
    num_heads_ = smaller(pass, p.num_kv_heads - (kv_head - place));
    head_ = place * kTile % num_heads_;
    const int64_t first_row = kTile + place * kTile / num_heads_;
    row_ = reinterpret_cast<uintptr_t>(tile) - place * head_bytes_ + first_row * row_bytes_;
  }
  void prefetch_piece() {
    const uintptr_t piece = row_ + head_ * head_bytes_;
    for (int64_t byte = 0; byte < dim_bytes_; byte += 64)
      __builtin_prefetch(reinterpret_cast<const void*>(piece + byte));  // NOLINT: it may lie past the last row
    if (++head_ == num_heads_) head_ = 0, row_ += row_bytes_;
  }

 private:
  static constexpr int64_t kBytes = sizeof(typename Format::Source);
  int64_t row_bytes_, head_bytes_, dim_bytes_, num_heads_, head_;
  uintptr_t row_;
};

template <class Format>
void pack_key_tile(const AttentionProblem& p, const Layout<Format>& layout, const typename Format::Source* keys,
                   int64_t count, NextTile<Format> next, typename Format::Element* packed) {
  using Isa = typename Format::Isa;
  constexpr int64_t kLanes = Isa::kLanes, kWords = kLanes * Format::kPair,
                    kStep = Layout<Format>::kTile * Format::kPair;
  for (int64_t first = 0; first < Layout<Format>::kTile; first += kLanes) {
    for (int64_t i = 0; i < kLanes; ++i) next.prefetch_piece();
    for (int64_t column = 0; column < layout.dim; column += kWords) {
      typename Isa::Vector block[kLanes];
#pragma GCC unroll 16
      for (int64_t i = 0; i < kLanes; ++i)
        block[i] = first + i < count ? Format::load(keys + (first + i) * p.key.row_stride + column, layout.dim - column)
                                     : Isa::zero();
      Isa::transpose(block);
      typename Format::Element* out = packed + column / Format::kPair * kStep + first * Format::kPair;
      const int64_t steps = smaller(kLanes, layout.key_steps - column / Format::kPair);
      if (steps == kLanes) {
#pragma GCC unroll 16
        for (int64_t i = 0; i < kLanes; ++i) Format::store_packed(out + i * kStep, block[i]);
      } else {
        for (int64_t i = 0; i < steps; ++i) Format::store_packed(out + i * kStep, block[i]);
      }
    }
  }
}

template <class Format>
void pack_value_tile(const AttentionProblem& p, const Layout<Format>& layout, const typename Format::Source* values,
                     int64_t count, NextTile<Format> next, typename Format::Element* packed) {
  using Isa = typename Format::Isa;
  constexpr int64_t kWords = Isa::kLanes * Format::kPair;
  for (int64_t key = 0; key < Layout<Format>::kTile; key += Format::kPair) {
    const typename Format::Source* row = values + key * p.value.row_stride;
    typename Format::Element* out = packed + key * layout.value_width;
    for (int i = 0; i < Format::kPair; ++i) next.prefetch_piece();
    for (int64_t column = 0; column < layout.dim; column += kWords) {
      typename Isa::Vector words[Format::kPair];
      for (int i = 0; i < Format::kPair; ++i)
        words[i] =
            key + i < count ? Format::load(row + i * p.value.row_stride + column, layout.dim - column) : Isa::zero();
      Format::interleave(words);
      for (int i = 0; i < Format::kPair; ++i)
        if (column + i * Isa::kLanes < layout.value_width)
          Format::store_packed(out + (column + i * Isa::kLanes) * Format::kPair, words[i]);
    }
  }
}

// Tiles tile_begin .. tile_end, the first of them to the front of the buffers.
template <class Format>
void pack_tiles(const AttentionProblem& p, const AttentionSequence& seq, const Layout<Format>& layout, int64_t kv_head,
                int64_t tile_begin, int64_t tile_end, typename Format::Element* key_out,
                typename Format::Element* value_out) {
  for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
    const int64_t first = tile * Layout<Format>::kTile, count = smaller(Layout<Format>::kTile, seq.num_keys - first);
    const auto* keys = row_at<Format>(p.key, seq.key_begin + first, kv_head);
    const auto* values = row_at<Format>(p.value, seq.key_begin + first, kv_head);
    pack_key_tile(p, layout, keys, count, NextTile<Format>(p, p.key, keys, kv_head), key_out);
    pack_value_tile(p, layout, values, count, NextTile<Format>(p, p.value, values, kv_head), value_out);
    key_out += layout.key_tile();
    value_out += layout.value_tile();
  }
}

template <class Format>
void pack(const AttentionProblem& p, const AttentionSequence& seq, int64_t kv_head, int64_t tile, void* packed_key,
          void* packed_value) {
  const Layout<Format> layout(p);
  pack_tiles(p, seq, layout, kv_head, tile, tile + 1,
             static_cast<typename Format::Element*>(packed_key) + tile * layout.key_tile(),
             static_cast<typename Format::Element*>(packed_value) + tile * layout.value_tile());
}

// ---- one group of rows against one block of keys ----

// Which keys the stacked rows of a range may see.
struct RowView {
  const AttentionProblem& problem;
  const AttentionSequence& sequence;
  int64_t ratio;

  int64_t query_row(int64_t row) const { return row / ratio; }
  // Keys behind `end` are hidden by causality or lie outside the sequence.
  int64_t end(int64_t row) const {
    if (!problem.is_causal) return sequence.num_keys;
    return larger(0, query_row(row) + 1 + sequence.num_keys - sequence.num_queries);
  }
  // With a window: keys at this position or before it are hidden.
  int64_t horizon(int64_t row) const {
    return problem.query_position[sequence.query_begin + query_row(row)] - problem.window;
  }
};

// Tiles [begin, end) to be worked on, and whether all of their keys are seen by all rows.
struct TileRange {
  int64_t begin, end;
  bool needs_mask;
};

// For stacked rows row_begin .. row_end; key_begin is the first key of tile_begin.
template <class Format>
TileRange visible_tiles(const RowView& view, int64_t row_begin, int64_t row_end, int64_t tile_begin, int64_t tile_end,
                        const AttentionTilePositions* positions) {
  constexpr int64_t kTile = Layout<Format>::kTile;
  const int64_t last_end = view.end(row_end - 1), first_end = view.end(row_begin);
  TileRange tiles{tile_begin, smaller(tile_end, (last_end + kTile - 1) / kTile), false};
  tiles.needs_mask = first_end < tiles.end * kTile;
  if (view.problem.window == 0) return tiles;
  int64_t nearest = view.horizon(row_begin), farthest = nearest;
  for (int64_t row = row_begin + 1; row < row_end; ++row) {
    nearest = smaller(nearest, view.horizon(row));
    farthest = larger(farthest, view.horizon(row));
  }
  while (tiles.begin < tiles.end && positions[tiles.begin].largest <= nearest) ++tiles.begin;
  while (tiles.begin < tiles.end && positions[tiles.end - 1].largest <= nearest) --tiles.end;
  for (int64_t tile = tiles.begin; tile < tiles.end; ++tile) tiles.needs_mask |= positions[tile].smallest <= farthest;
  return tiles;
}

// Hides the scores [rows, count] of the keys from first_key on that a row does not see.
inline void mask_scores(const RowView& view, int64_t row_begin, int64_t num_rows, int64_t first_key, int64_t count,
                        int64_t stride, float* score) {
  for (int64_t r = 0; r < num_rows; ++r) {
    float* row = score + r * stride;
    const int64_t seen = larger(0, smaller(count, view.end(row_begin + r) - first_key));
    for (int64_t j = seen; j < count; ++j) row[j] = -kInfinity;
    if (view.problem.window == 0) continue;
    const int64_t horizon = view.horizon(row_begin + r);
    const int64_t* position = view.problem.key_position + view.sequence.key_begin + first_key;
    for (int64_t j = 0; j < seen; ++j) row[j] = position[j] > horizon ? row[j] : -kInfinity;
  }
}

// Turns R rows of scores into probabilities relative to the new peaks; correction[r] is what older sums must be
// multiplied with.
template <class Format, int R>
[[gnu::always_inline]] inline void soften(const float* score, int64_t count, float scale_log2,
                                          typename Format::Element* probability, float* mass, float* peak,
                                          float (&correction)[R]) {
  using Isa = typename Format::Isa;
  using Vector = typename Isa::Vector;
  constexpr int64_t kLanes = Isa::kLanes, kPair = Format::kPair, kBlock = Layout<Format>::kBlock;
  const Vector scale = Isa::set(scale_log2);
  for (int r = 0; r < R; ++r) {
    const float* s = score + r * kBlock;
    Vector top[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) top[i] = Isa::set(-kInfinity);
    int64_t j = 0;
    for (; j + 4 * kLanes <= count; j += 4 * kLanes)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) top[i] = Isa::max(top[i], Isa::load(s + j + i * kLanes));
    for (; j < count; j += kLanes) top[0] = Isa::max(top[0], Isa::load(s + j));
    const float old_peak = peak[r];
    const float block_peak = Isa::reduce_max(Isa::max(Isa::max(top[0], top[1]), Isa::max(top[2], top[3]))) * scale_log2;
    const float new_peak = block_peak > old_peak ? block_peak : old_peak;
    peak[r] = new_peak;
    // A row that has seen no key yet: its scores are all -inf, and 0 keeps the differences defined.
    const float base = new_peak == -kInfinity ? 0.0F : new_peak;
    correction[r] = old_peak == new_peak ? 1.0F : Isa::first(Format::exp2(Isa::set(old_peak - base)));
    const Vector minus_base = Isa::set(-base);
    Vector total[2] = {Isa::multiply(Isa::load(mass + r * kLanes), Isa::set(correction[r])), Isa::zero()};
    for (j = 0; j < count; j += 2 * kLanes) {
      Vector p[2];
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        p[i] = Format::exp2(Isa::multiply_add(Isa::load(s + j + i * kLanes), scale, minus_base));
        total[i] = Isa::add(total[i], p[i]);
      }
      Format::store_probability(probability + r * kBlock + j, p);
    }
    Isa::store(mass + r * kLanes, Isa::add(total[0], total[1]));
  }
  static_assert(kPair <= 2);
}

// sum[r] = sum[r] · correction[r] + P·V, for N vectors of dimensions. The block's own sum starts from zero: fewer
// roundings per key.
template <class Format, int R, int N>
void add_values(const typename Format::Element* probability, const typename Format::Element* value, int64_t value_width,
                int64_t steps, const float (&correction)[R], float* sum) {
  using Isa = typename Format::Isa;
  typename Isa::Vector acc[R][N];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) acc[r][n] = Isa::zero();
  multiply<Format, R, N>(probability, Layout<Format>::kBlock, value, value_width * Format::kPair, steps, acc);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      float* at = sum + r * value_width + n * Isa::kLanes;
      Isa::store(at, Isa::multiply_add(Isa::load(at), Isa::set(correction[r]), acc[r][n]));
    }
}

template <class Format, int R>
void add_values_in_parts(const typename Format::Element* probability, const typename Format::Element* value,
                         int64_t value_width, int64_t steps, const float (&correction)[R], float* sum) {
  const int64_t vectors = value_width / Layout<Format>::kLanes;
  const int64_t parts = (vectors + Format::kValueVectors - 1) / Format::kValueVectors;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t from = vectors * part / parts, width = vectors * (part + 1) / parts - from;
    const int64_t column = from * Layout<Format>::kLanes;
    const auto* columns = value + column * Format::kPair;
    switch (width) {
      case 1:
        add_values<Format, R, 1>(probability, columns, value_width, steps, correction, sum + column);
        break;
      case 2:
        add_values<Format, R, 2>(probability, columns, value_width, steps, correction, sum + column);
        break;
      case 3:
        if constexpr (Format::kValueVectors >= 3)
          add_values<Format, R, 3>(probability, columns, value_width, steps, correction, sum + column);
        break;
      default:
        if constexpr (Format::kValueVectors >= 4)
          add_values<Format, R, 4>(probability, columns, value_width, steps, correction, sum + column);
    }
  }
}

template <class Format, int R>
void score_tile(const typename Format::Element* query, int64_t query_stride, const typename Format::Element* key,
                int64_t steps, float* score) {
  using Isa = typename Format::Isa;
  constexpr int kVectors = Format::kTileVectors;
  typename Isa::Vector acc[R][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < kVectors; ++n) acc[r][n] = Isa::zero();
  multiply<Format, R, kVectors>(query, query_stride, key, Layout<Format>::kTile * Format::kPair, steps, acc);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < kVectors; ++n) Isa::store(score + r * Layout<Format>::kBlock + n * Isa::kLanes, acc[r][n]);
}

// A group of rows against tiles of one block. R is num_rows or the next size there is: rows beyond it hold zeros and
// are ignored.
template <class Format, int R>
void attend_group(const RowView& view, const Layout<Format>& layout, int64_t row, int64_t num_rows,
                  const TileRange& tiles, const typename Format::Element* query, const typename Format::Element* key,
                  const typename Format::Element* value, const Scratch<Format>& scratch, float* sum, float* mass,
                  float* peak) {
  constexpr int64_t kTile = Layout<Format>::kTile;
  for (int64_t tile = tiles.begin; tile < tiles.end; ++tile)
    if constexpr (R > kVectorRows)
      Format::score_tile(query, layout.query_stride, key + (tile - tiles.begin) * layout.key_tile(), layout.key_steps,
                         scratch.score + (tile - tiles.begin) * kTile);
    else
      score_tile<Format, R>(query, layout.query_stride, key + (tile - tiles.begin) * layout.key_tile(),
                            layout.key_steps, scratch.score + (tile - tiles.begin) * kTile);
  const int64_t first_key = tiles.begin * kTile, count = (tiles.end - tiles.begin) * kTile;
  if (tiles.needs_mask) mask_scores(view, row, num_rows, first_key, count, Layout<Format>::kBlock, scratch.score);
  float correction[R];
  soften<Format, R>(scratch.score, count, view.problem.scale * kLog2E, scratch.probability, mass, peak, correction);
  // Keys behind the last row's end have probability 0.
  const int64_t end = smaller(count, view.end(row + num_rows - 1) - first_key);
  const int64_t steps = round_up((end + Format::kPair - 1) / Format::kPair, Format::kStepMultiple);
  if constexpr (R > kVectorRows) {
    Format::add_values(scratch.probability, value, layout.value_width, steps, correction, sum);
  } else {
    add_values_in_parts<Format, R>(scratch.probability, value, layout.value_width, steps, correction, sum);
  }
}

// ---- the functions of the table ----

template <class Format>
void load_query(const AttentionProblem& p, const AttentionSequence& seq, const AttentionRange& range,
                const Layout<Format>& layout, typename Format::Element* query) {
  using Isa = typename Format::Isa;
  constexpr int64_t kWords = Isa::kLanes * Format::kPair;
  const int64_t ratio = p.num_heads / p.num_kv_heads,
                rows = round_up(range.row_end - range.row_begin, Format::kGroupRows);
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t row = range.row_begin + i;
    const bool is_real = row < range.row_end;
    const auto* source =
        is_real ? row_at<Format>(p.query, seq.query_begin + row / ratio, range.kv_head * ratio + row % ratio) : nullptr;
    for (int64_t column = 0; column < layout.query_stride; column += kWords)
      Format::store_packed(query + i * layout.query_stride + column,
                           is_real ? Format::load(source + column, layout.dim - column) : Isa::zero());
  }
}

template <class Format>
void start(const AttentionProblem& p, int64_t num_rows, float* base) {
  const int64_t padded_rows = round_up(num_rows, Format::kGroupRows);
  const Partial<Format> partial(base, padded_rows, Layout<Format>(p));
  for (float* at = partial.sum; at != partial.peak; ++at) *at = 0;
  for (int64_t i = 0; i < padded_rows; ++i) partial.peak[i] = -kInfinity;
}

template <class Format>
void attend(const AttentionProblem& p, const AttentionSequence& seq, const AttentionRange& range,
            const AttentionTilePositions* positions, const void* packed_key, const void* packed_value,
            void* scratch_base, float* partial_base) {
  using Element = typename Format::Element;
  constexpr int64_t kTile = Layout<Format>::kTile, kBlockTiles = Layout<Format>::kBlock / kTile;
  const Layout<Format> layout(p);
  const int64_t num_rows = range.row_end - range.row_begin, padded_rows = round_up(num_rows, Format::kGroupRows);
  const Scratch<Format> scratch(scratch_base, layout);
  const Partial<Format> partial(partial_base, padded_rows, layout);
  const RowView view{p, seq, p.num_heads / p.num_kv_heads};
  load_query<Format>(p, seq, range, layout, scratch.query);
  [[maybe_unused]] const typename Format::Session session(num_rows);
  const int64_t last_tile = (range.key_end + kTile - 1) / kTile;
  for (int64_t tile = range.key_begin / kTile; tile < last_tile; tile += kBlockTiles) {
    const int64_t block_end = smaller(tile + kBlockTiles, last_tile);
    const TileRange block = visible_tiles<Format>(view, range.row_begin, range.row_end, tile, block_end, positions);
    if (block.begin >= block.end) continue;
    const Element *key = scratch.key, *value = scratch.value;
    if (packed_key == nullptr) {
      pack_tiles(p, seq, layout, range.kv_head, block.begin, block.end, scratch.key, scratch.value);
    } else {
      key = static_cast<const Element*>(packed_key) + block.begin * layout.key_tile();
      value = static_cast<const Element*>(packed_value) + block.begin * layout.value_tile();
    }
    for (int64_t i = 0; i < num_rows; i += Format::kGroupRows) {
      const int64_t count = smaller(Format::kGroupRows, num_rows - i), row = range.row_begin + i;
      const TileRange tiles = visible_tiles<Format>(view, row, row + count, block.begin, block.end, positions);
      if (tiles.begin >= tiles.end) continue;
      const auto attend_rows = [&]<int R>() {
        attend_group<Format, R>(view, layout, row, count, tiles, scratch.query + i * layout.query_stride,
                                key + (tiles.begin - block.begin) * layout.key_tile(),
                                value + (tiles.begin - block.begin) * layout.value_tile(), scratch,
                                partial.sum + i * layout.value_width, partial.mass + i * Layout<Format>::kLanes,
                                partial.peak + i);
      };
      if (count > kVectorRows) {
        if constexpr (Format::kGroupRows > kVectorRows) attend_rows.template operator()<Format::kGroupRows>();
      } else if (count > 4)
        attend_rows.template operator()<6>();
      else if (count > 2)
        attend_rows.template operator()<4>();
      else if (count > 1)
        attend_rows.template operator()<2>();
      else
        attend_rows.template operator()<1>();
    }
  }
}

template <class Format>
void finish(const AttentionProblem& p, const AttentionSequence& seq, const AttentionRange& range, float* partials,
            int64_t num_partials) {
  using Isa = typename Format::Isa;
  const Layout<Format> layout(p);
  const int64_t num_rows = range.row_end - range.row_begin, padded_rows = round_up(num_rows, Format::kGroupRows);
  const int64_t ratio = p.num_heads / p.num_kv_heads, stride = Partial<Format>::floats(padded_rows, layout);
  const auto part = [&](int64_t i) { return Partial<Format>(partials + i * stride, padded_rows, layout); };
  for (int64_t r = 0; r < num_rows; ++r) {
    const int64_t row = range.row_begin + r, query_row = seq.query_begin + row / ratio;
    const int64_t head = range.kv_head * ratio + row % ratio;
    float peak = -kInfinity, mass = 0;
    for (int64_t i = 0; i < num_partials; ++i) peak = part(i).peak[r] > peak ? part(i).peak[r] : peak;
    const float base = peak == -kInfinity ? 0.0F : peak;
    for (int64_t i = 0; i < num_partials; ++i) {
      float& weight = part(i).peak[r];  // the peak becomes the weight of its part
      weight = weight == base ? 1.0F : exp2f(weight - base);
      mass += weight * Isa::reduce_add(Isa::load(part(i).mass + r * Isa::kLanes));
    }
    const float inverse = mass > 0 ? 1.0F / mass : 0.0F;
    auto* out = static_cast<typename Format::Source*>(p.output) + (query_row * p.num_heads + head) * p.head_dim;
    for (int64_t column = 0; column < layout.dim; column += Isa::kLanes) {
      typename Isa::Vector sum = Isa::zero();
      for (int64_t i = 0; i < num_partials; ++i)
        sum =
            Isa::multiply_add(Isa::load(part(i).sum + r * layout.value_width + column), Isa::set(part(i).peak[r]), sum);
      Format::store_output(out + column, Isa::multiply(sum, Isa::set(inverse)), layout.dim - column);
    }
    p.lse[head * p.num_query_rows + query_row] = mass > 0 ? (peak + log2f(mass)) * kLn2 : -kInfinity;
  }
}

template <class Format>
constexpr AttentionKernels kernels_of(std::string_view name) {
  return {.name = name,
          .keys_per_tile = Layout<Format>::kTile,
          .keys_per_block = Layout<Format>::kBlock,
          .rows_per_group = Format::kGroupRows,
          .heads_per_pass = heads_per_pass<Format>,
          .packed_bytes =
              [](const AttentionProblem& p, int64_t num_tiles) {
                const Layout<Format> layout(p);
                const int64_t tile = larger(layout.key_tile(), layout.value_tile());
                return num_tiles * tile * static_cast<int64_t>(sizeof(typename Format::Element));
              },
          .scratch_bytes =
              [](const AttentionProblem& p, int64_t rows) {
                return Scratch<Format>::bytes(round_up(rows, Format::kGroupRows), Layout<Format>(p));
              },
          .partial_floats =
              [](const AttentionProblem& p, int64_t rows) {
                return Partial<Format>::floats(round_up(rows, Format::kGroupRows), Layout<Format>(p));
              },
          .pack = pack<Format>,
          .start = start<Format>,
          .attend = attend<Format>,
          .finish = finish<Format>};
}

}  // namespace
}  // namespace espalier::kernels
