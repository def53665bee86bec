// SPDX-License-Identifier: Apache-2.0
#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "kernels/ops/attention_growth/attention_growth.h"
#include "kernels/ops/attention_probe/attention_probe_tile.h"
#include "kernels/ops/cosine_score/cosine_score.h"

namespace espalier::kernels {

namespace {

constexpr int64_t kColumns = ProbabilityTile::kColumns;

// total[c] += sum over lines of upper - lower, each clipped at 0 when `clips`. In two levels of sums, as in the probe.
void add_differences(const float* lower, const float* upper, int64_t num_lines, bool clips, float* total) {
  float sum[kColumns] = {};
  for (int64_t i = 0; i < num_lines; ++i, lower += kColumns, upper += kColumns) {
    if (clips) {
      for (int64_t c = 0; c < kColumns; ++c) sum[c] += std::max(0.0F, upper[c] - lower[c]);
    } else {
      for (int64_t c = 0; c < kColumns; ++c) sum[c] += upper[c] - lower[c];
    }
  }
  for (int64_t c = 0; c < kColumns; ++c) total[c] += sum[c];
}

struct TileGrowth {
  const ProbeLayer& lower_layer;
  const ProbeLayer& upper_layer;
  const ProbeShape& shape;
  bool relu_per_head;
  ProbabilityTile lower, upper;

  void run(const ColumnTile& tile, float* out) {
    float total[kColumns] = {};
    const int64_t first = shape.row_begin[tile.group], end = shape.row_begin[tile.group + 1];
    for (int64_t row = first; row < end; row += lower.max_rows()) {
      const int64_t num_rows = std::min(lower.max_rows(), end - row);
      for (int64_t kv_head = 0; kv_head < shape.num_kv_heads; ++kv_head) {
        const float* before = lower.compute(lower_layer, kv_head, shape.rows + row, num_rows, tile);
        const float* after = upper.compute(upper_layer, kv_head, shape.rows + row, num_rows, tile);
        add_differences(before, after, lower.repeat() * num_rows, relu_per_head, total);
      }
    }
    const float summed = static_cast<float>(std::max<int64_t>(end - first, 1) * shape.num_heads);
    for (int64_t c = 0; c < tile.count; ++c) out[tile.begin + c] = std::max(0.0F, total[c] / summed);
  }
};

void add_cosines(const ProbeShape& shape, const GrowthDirection& direction, const ColumnTile& tile, CpuLevel level,
                 float* out) {
  float cosine[kColumns];
  const CosineDirections one(direction.direction + tile.group * direction.width, 1, direction.width, level);
  one.score(direction.hidden, direction.hidden_stride, direction.hidden_type, shape.columns + tile.begin, 0, tile.count,
            cosine, kColumns);
  for (int64_t c = 0; c < tile.count; ++c) out[tile.begin + c] += direction.weight * cosine[c];
}

}  // namespace

void attention_growth_blocked(const ProbeLayer& lower, const ProbeLayer& upper, const ProbeShape& shape,
                              bool relu_per_head, const GrowthDirection& direction, CpuLevel level, float* out) {
  const std::vector<ColumnTile> tiles = column_tiles(shape);
  const auto num_tiles = static_cast<int64_t>(tiles.size());
  at::parallel_for(0, num_tiles, tiles_per_thread(shape, num_tiles), [&](int64_t first, int64_t last) {
    TileGrowth growth{lower, upper, shape, relu_per_head, ProbabilityTile(shape, level), ProbabilityTile(shape, level)};
    for (int64_t i = first; i < last; ++i) {
      growth.run(tiles[i], out);
      if (direction.hidden != nullptr) add_cosines(shape, direction, tiles[i], level, out);
    }
  });
}

}  // namespace espalier::kernels
