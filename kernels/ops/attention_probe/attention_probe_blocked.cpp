// SPDX-License-Identifier: Apache-2.0
#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "kernels/ops/attention_probe/attention_probe.h"
#include "kernels/ops/attention_probe/attention_probe_tile.h"

namespace espalier::kernels {

namespace {

constexpr int64_t kColumns = ProbabilityTile::kColumns;

// Adds the lines [num_lines, kColumns] up. Two levels of sums keep the rounding error of thousands of lines small.
void add_lines(const float* lines, int64_t num_lines, float* total) {
  float sum[kColumns] = {};
  for (int64_t i = 0; i < num_lines; ++i) {
    for (int64_t c = 0; c < kColumns; ++c) sum[c] += lines[i * kColumns + c];
  }
  for (int64_t c = 0; c < kColumns; ++c) total[c] += sum[c];
}

void take_larger(const float* from, int64_t count, float* into) {
  for (int64_t i = 0; i < count; ++i) into[i] = std::max(into[i], from[i]);
}

void add(const float* from, int64_t count, float* into) {
  for (int64_t i = 0; i < count; ++i) into[i] += from[i];
}

void store_scaled(const float* from, int64_t num_lines, int64_t count, float factor, float* out, int64_t stride) {
  for (int64_t i = 0; i < num_lines; ++i) {
    for (int64_t c = 0; c < count; ++c) out[i * stride + c] = factor * from[i * kColumns + c];
  }
}

// The probe of one tile of columns: blocks of rows, in each all heads.
class TileProbe {
 public:
  TileProbe(const ProbeLayer& layer, const ProbeShape& shape, ops::HeadReduction heads, bool reduce_rows,
            CpuLevel level, float* out)
      : layer_(layer), shape_(shape), heads_(heads), reduce_rows_(reduce_rows), out_(out), tile_(shape, level) {
    total_.resize((heads == ops::HeadReduction::kEach ? shape.num_heads : 1) * kColumns);
    by_row_.resize(tile_.max_rows() * kColumns);
  }

  void run(const ColumnTile& tile) {
    std::fill(total_.begin(), total_.end(), 0.0F);
    const int64_t end = shape_.row_begin[tile.group + 1];
    for (int64_t row = shape_.row_begin[tile.group]; row < end; row += tile_.max_rows()) {
      run_rows(tile, row, std::min(tile_.max_rows(), end - row));
    }
    if (reduce_rows_) store_total(tile);
  }

 private:
  void run_rows(const ColumnTile& tile, int64_t row, int64_t num_rows) {
    const bool keeps_rows =
        heads_ == ops::HeadReduction::kMax || (heads_ == ops::HeadReduction::kMean && !reduce_rows_);
    if (keeps_rows) std::fill(by_row_.begin(), by_row_.end(), 0.0F);
    for (int64_t kv_head = 0; kv_head < shape_.num_kv_heads; ++kv_head) {
      const float* p = tile_.compute(layer_, kv_head, shape_.rows + row, num_rows, tile);
      for (int64_t i = 0; i < tile_.repeat(); ++i) {
        const float* lines = p + i * num_rows * kColumns;
        const int64_t head = kv_head * tile_.repeat() + i;
        if (heads_ == ops::HeadReduction::kEach && reduce_rows_) {
          add_lines(lines, num_rows, &total_[head * kColumns]);
        } else if (heads_ == ops::HeadReduction::kEach) {
          store_rows(lines, tile, head * shape_.row_begin[shape_.num_groups] + row, num_rows, 1.0F);
        } else if (!keeps_rows) {
          add_lines(lines, num_rows, total_.data());
        } else if (heads_ == ops::HeadReduction::kMax) {
          take_larger(lines, num_rows * kColumns, by_row_.data());
        } else {
          add(lines, num_rows * kColumns, by_row_.data());
        }
      }
    }
    if (!keeps_rows) return;
    if (reduce_rows_) return add_lines(by_row_.data(), num_rows, total_.data());
    store_rows(by_row_.data(), tile, row, num_rows,
               heads_ == ops::HeadReduction::kMax ? 1.0F : 1.0F / static_cast<float>(shape_.num_heads));
  }

  int64_t num_columns() const { return shape_.column_begin[shape_.num_groups]; }

  void store_rows(const float* lines, const ColumnTile& tile, int64_t out_row, int64_t num_rows, float factor) {
    store_scaled(lines, num_rows, tile.count, factor, out_ + out_row * num_columns() + tile.begin, num_columns());
  }

  void store_total(const ColumnTile& tile) {
    const int64_t num_rows = shape_.row_begin[tile.group + 1] - shape_.row_begin[tile.group];
    const int64_t summed =
        std::max<int64_t>(num_rows, 1) * (heads_ == ops::HeadReduction::kMean ? shape_.num_heads : 1);
    store_scaled(total_.data(), static_cast<int64_t>(total_.size()) / kColumns, tile.count,
                 1.0F / static_cast<float>(summed), out_ + tile.begin, num_columns());
  }

  const ProbeLayer& layer_;
  const ProbeShape& shape_;
  ops::HeadReduction heads_;
  bool reduce_rows_;
  float* out_;
  ProbabilityTile tile_;
  std::vector<float> total_;   // [1 or h, kColumns], summed over rows
  std::vector<float> by_row_;  // [max_rows, kColumns], reduced over heads
};

}  // namespace

void attention_probe_blocked(const ProbeLayer& layer, const ProbeShape& shape, ops::HeadReduction heads,
                             bool reduce_rows, CpuLevel level, float* out) {
  const std::vector<ColumnTile> tiles = column_tiles(shape);
  const auto num_tiles = static_cast<int64_t>(tiles.size());
  at::parallel_for(0, num_tiles, tiles_per_thread(shape, num_tiles), [&](int64_t first, int64_t last) {
    TileProbe probe(layer, shape, heads, reduce_rows, level, out);
    for (int64_t i = first; i < last; ++i) probe.run(tiles[i]);
  });
}

}  // namespace espalier::kernels
