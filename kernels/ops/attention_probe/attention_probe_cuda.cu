// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "kernels/ops/attention_probe/attention_probe.h"
#include "kernels/support/cuda/row_products.cuh"

namespace espalier::kernels {
namespace {

// Rows that one block of the unreduced form takes.
constexpr int64_t kRowsOfABlock = 32;

// One warp per column, which stays in the level 1 cache while all rows and heads pass; the warps of a block share the
// query rows the same way. No sum crosses warps: the result does not depend on timing.
template <int N, typename T>
__global__ void __launch_bounds__(kColumnWarps* kWarpSize)
    probe_kernel(ProbeLayer layer, ProbeShape shape, ProbeGroupBounds groups, ops::HeadReduction heads,
                 bool reduce_rows, int64_t num_rows, int64_t num_columns, float* out) {
  const auto [group, c] = warp_column(groups);
  if (group < 0) return;
  const int64_t column = shape.columns[c];
  int64_t first = groups.bound[group].row_begin, last = groups.bound[group].row_end;
  const float row_share = last > first ? 1.0F / static_cast<float>(last - first) : 0.0F;
  if (!reduce_rows) {
    first += blockIdx.y * kRowsOfABlock;
    last = min(last, first + kRowsOfABlock);
  }
  const bool writes = threadIdx.x % kWarpSize == 0;
  const int64_t h = shape.num_heads;
  if (heads == ops::HeadReduction::kEach) {
    for (int64_t head = 0; head < h; ++head) {
      float sum = 0.0F;
      for (int64_t r = first; r < last; ++r) {
        const float p = warp_probability<N, T>(layer, shape, head, shape.rows[r], column);
        if (!reduce_rows && writes) out[(head * num_rows + r) * num_columns + c] = p;
        sum += p;
      }
      if (reduce_rows && writes) out[head * num_columns + c] = sum * row_share;
    }
    return;
  }
  float sum = 0.0F;
  for (int64_t r = first; r < last; ++r) {
    float reduced = 0.0F;
    for (int64_t head = 0; head < h; ++head) {
      const float p = warp_probability<N, T>(layer, shape, head, shape.rows[r], column);
      reduced = heads == ops::HeadReduction::kMax ? fmaxf(reduced, p) : reduced + p;
    }
    if (heads == ops::HeadReduction::kMean) reduced /= static_cast<float>(h);
    if (!reduce_rows && writes) out[r * num_columns + c] = reduced;
    sum += reduced;
  }
  if (reduce_rows && writes) out[c] = sum * row_share;
}

}  // namespace

cudaError_t attention_probe_cuda(const ProbeLayer& layer, const ProbeShape& shape, ops::HeadReduction heads,
                                 bool reduce_rows, float* out, cudaStream_t stream) {
  const int64_t num_rows = shape.row_begin[shape.num_groups], num_columns = shape.column_begin[shape.num_groups];
  const int64_t row_blocks = reduce_rows ? 1 : std::max<int64_t>(1, (num_rows + kRowsOfABlock - 1) / kRowsOfABlock);
  for (int64_t first = 0; first < shape.num_groups; first += ProbeGroupBounds::kMaxGroups) {
    const ProbeGroupBounds groups = probe_group_bounds(shape, first);
    const int64_t columns = groups.bound[groups.count - 1].column_end - groups.first_column;
    if (columns == 0) continue;
    const dim3 grid(static_cast<unsigned>((columns + kColumnWarps - 1) / kColumnWarps),
                    static_cast<unsigned>(row_blocks));
    visit_pack(pack_of_layer(layer, shape), [&]<int N>(std::integral_constant<int, N>) {
      visit_element(shape.type, [&]<typename T>(T*) {
        probe_kernel<N, T><<<grid, kColumnWarps * kWarpSize, 0, stream>>>(layer, shape, groups, heads, reduce_rows,
                                                                          num_rows, num_columns, out);
      });
    });
    if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace espalier::kernels
