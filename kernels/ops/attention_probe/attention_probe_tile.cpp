// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/attention_probe/attention_probe_tile.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/ops/attention_probe/attention_probe_vector.h"
#include "kernels/support/chosen_kernels.h"

namespace espalier::kernels {

namespace {

// Lines (rows of one head) in a block: enough to make packing the keys cheap, few enough for the level 2 cache.
constexpr int64_t kLines = 128;

const char* element(const void* base, int64_t i, ElementType type) {
  return static_cast<const char*>(base) + i * element_size(type);
}

}  // namespace

std::vector<ColumnTile> column_tiles(const ProbeShape& shape) {
  std::vector<ColumnTile> tiles;
  for (int64_t group = 0; group < shape.num_groups; ++group) {
    const int64_t end = shape.column_begin[group + 1];
    for (int64_t begin = shape.column_begin[group]; begin < end; begin += ProbabilityTile::kColumns) {
      tiles.push_back({group, begin, std::min(ProbabilityTile::kColumns, end - begin)});
    }
  }
  return tiles;
}

int64_t tiles_per_thread(const ProbeShape& shape, int64_t num_tiles) {
  constexpr int64_t kWorthAThread = int64_t{1} << 17;  // elements of keys read or multiplied
  const int64_t rows_of_a_group = shape.row_begin[shape.num_groups] / std::max<int64_t>(shape.num_groups, 1) + 1;
  const int64_t work = ProbabilityTile::kColumns * shape.num_heads * shape.d * rows_of_a_group;
  return std::clamp<int64_t>(kWorthAThread / std::max<int64_t>(work, 1), 1, std::max<int64_t>(num_tiles, 1));
}

bool takes_tiles(const ProbeShape& shape, int64_t group) {
  const int64_t rows = shape.row_begin[group + 1] - shape.row_begin[group];
  return rows * (shape.num_heads / shape.num_kv_heads) >= DotPanel::kTileRows;
}

std::string_view probability_kernel_name(const ProbeShape& shape, CpuLevel level) {
  bool has_many_rows = false;
  for (int64_t group = 0; group < shape.num_groups; ++group) has_many_rows |= takes_tiles(shape, group);
  return panel_kernel_name(has_many_rows ? level : std::min(level, CpuLevel::kAvx512), shape.type);
}

ProbabilityTile::ProbabilityTile(const ProbeShape& shape, CpuLevel level)
    : shape_(shape),
      level_(level),
      repeat_(shape.num_heads / shape.num_kv_heads),
      max_rows_(std::max<int64_t>(1, kLines / repeat_)),
      panel_(shape.d, shape.type, level),
      row_pointers_(std::max(repeat_ * max_rows_, kColumns)),
      lse_(repeat_ * max_rows_),
      lines_(repeat_ * max_rows_ * kColumns) {}

const float* ProbabilityTile::compute(const ProbeLayer& layer, int64_t kv_head, const int64_t* rows, int64_t num_rows,
                                      const ColumnTile& tile) {
  for (int64_t c = 0; c < tile.count; ++c) {
    const int64_t token = shape_.columns[tile.begin + c];
    row_pointers_[c] = element(layer.key, token * layer.key_stride + kv_head * shape_.d, shape_.type);
  }
  panel_.pack(row_pointers_.data(), tile.count);
  const int64_t num_lines = repeat_ * num_rows;
  for (int64_t i = 0; i < repeat_; ++i) {
    const int64_t head = kv_head * repeat_ + i;
    for (int64_t r = 0; r < num_rows; ++r) {
      row_pointers_[i * num_rows + r] =
          element(layer.query, rows[r] * layer.query_stride + head * shape_.d, shape_.type);
      lse_[i * num_rows + r] = layer.lse[head * shape_.num_queries + rows[r]];
    }
  }
  panel_.dots(row_pointers_.data(), num_lines, lines_.data(), takes_tiles(shape_, tile.group));
  exponentiate(num_lines);
  hide(rows, num_rows, tile);
  return lines_.data();
}

void ProbabilityTile::exponentiate(int64_t num_lines) {
  if (ExponentiateLoop* vector = vector_form(level_, avx2::exponentiate, avx512::exponentiate))
    return vector(lines_.data(), num_lines, lse_.data(), shape_.scale);
  for (int64_t i = 0; i < num_lines; ++i) {
    const bool is_empty = lse_[i] == -std::numeric_limits<float>::infinity();  // the row sees no key
    for (float *p = &lines_[i * kColumns], *end = p + kColumns; p < end; ++p) {
      *p = is_empty ? 0.0F : std::exp(shape_.scale * *p - lse_[i]);
    }
  }
}

void ProbabilityTile::hide(const int64_t* rows, int64_t num_rows, const ColumnTile& tile) {
  const int64_t* columns = shape_.columns + tile.begin;
  const int64_t last_column = *std::max_element(columns, columns + tile.count);
  for (int64_t r = 0; r < num_rows; ++r) {
    const int64_t own = shape_.own_key != nullptr ? shape_.own_key[rows[r]] : rows[r];
    const bool is_cut = shape_.is_causal && last_column > own;
    if (!is_cut && shape_.window == 0 && tile.count == kColumns) continue;
    bool seen[kColumns] = {};
    for (int64_t c = 0; c < tile.count; ++c) {
      seen[c] = !(shape_.is_causal && columns[c] > own) &&
                !(shape_.window > 0 && shape_.position[own] - shape_.window >= shape_.position[columns[c]]);
    }
    for (int64_t i = 0; i < repeat_; ++i) {
      float* line = &lines_[(i * num_rows + r) * kColumns];
      for (int64_t c = 0; c < kColumns; ++c) line[c] = seen[c] ? line[c] : 0.0F;
    }
  }
}

}  // namespace espalier::kernels
