// SPDX-License-Identifier: Apache-2.0
// Blocks of recomputed attention probabilities on the CPU, for the reductions of attention_probe and attention_growth.
// Holds scratch for one block of rows and columns, never a whole matrix.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "kernels/ops/attention_probe/attention_probe.h"
#include "kernels/support/cpu_level.h"
#include "kernels/support/row_dots.h"

namespace espalier::kernels {

// Up to kColumns columns of one group.
struct ColumnTile {
  int64_t group, begin, count;  // columns begin .. begin + count of ProbeShape::columns
};

// All columns of all groups, cut into tiles: the unit of work of a thread.
std::vector<ColumnTile> column_tiles(const ProbeShape& shape);

// Tiles a thread should take at least, so that a small problem stays on one.
int64_t tiles_per_thread(const ProbeShape& shape, int64_t num_tiles);

// Whether the group's rows, with the query heads of a KV head side by side, are enough for matrix registers. All rows
// of the group count: its result does not depend on how it is cut, nor on the other groups.
bool takes_tiles(const ProbeShape& shape, int64_t group);

// The kernel that multiplies, of the largest group.
std::string_view probability_kernel_name(const ProbeShape& shape, CpuLevel level);

class ProbabilityTile {
 public:
  static constexpr int64_t kColumns = DotPanel::kColumns;

  ProbabilityTile(const ProbeShape& shape, CpuLevel level);

  // Rows that one call of `compute` may take.
  int64_t max_rows() const { return max_rows_; }
  // Query heads that share a KV head.
  int64_t repeat() const { return repeat_; }

  // Probabilities of the query heads of one KV head: [repeat, num_rows, kColumns]; columns behind the tile's count are
  // 0.
  const float* compute(const ProbeLayer& layer, int64_t kv_head, const int64_t* rows, int64_t num_rows,
                       const ColumnTile& tile);

 private:
  void exponentiate(int64_t num_lines);
  void hide(const int64_t* rows, int64_t num_rows, const ColumnTile& tile);

  const ProbeShape& shape_;
  CpuLevel level_;
  int64_t repeat_, max_rows_;
  DotPanel panel_;
  std::vector<const void*> row_pointers_;
  std::vector<float> lse_;    // of each line
  std::vector<float> lines_;  // [repeat * max_rows, kColumns]
};

}  // namespace espalier::kernels
