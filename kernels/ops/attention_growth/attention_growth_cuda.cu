// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "kernels/ops/attention_growth/attention_growth.h"
#include "kernels/support/cuda/row_products.cuh"

namespace espalier::kernels {
namespace {

// One warp per column: its keys of both layers and its hidden state are read from memory once.
template <int N, typename T>
__global__ void __launch_bounds__(kColumnWarps* kWarpSize)
    growth_kernel(ProbeLayer lower, ProbeLayer upper, ProbeShape shape, ProbeGroupBounds groups, bool relu_per_head,
                  GrowthDirection direction, float* out) {
  const auto [group, c] = warp_column(groups);
  if (group < 0) return;
  const int64_t column = shape.columns[c];
  const int64_t first = groups.bound[group].row_begin, last = groups.bound[group].row_end;
  float sum = 0.0F;
  for (int64_t r = first; r < last; ++r) {
    for (int64_t head = 0; head < shape.num_heads; ++head) {
      const float growth = warp_probability<N, T>(upper, shape, head, shape.rows[r], column) -
                           warp_probability<N, T>(lower, shape, head, shape.rows[r], column);
      sum += relu_per_head ? fmaxf(0.0F, growth) : growth;
    }
  }
  float score = last > first ? fmaxf(0.0F, sum / static_cast<float>((last - first) * shape.num_heads)) : 0.0F;
  if (direction.hidden != nullptr) {
    const float* towards = direction.direction + (groups.first_group + group) * direction.width;
    const int64_t row = column * direction.hidden_stride;
    float cosine = 0.0F;
    if (direction.hidden_type == ElementType::kFloat32) {
      cosine = warp_cosine(static_cast<const float*>(direction.hidden) + row, towards, direction.width);
    } else if (direction.hidden_type == ElementType::kBFloat16) {
      cosine = warp_cosine(static_cast<const __nv_bfloat16*>(direction.hidden) + row, towards, direction.width);
    } else {
      cosine = warp_cosine(static_cast<const __half*>(direction.hidden) + row, towards, direction.width);
    }
    score += direction.weight * cosine;
  }
  if (threadIdx.x % kWarpSize == 0) out[c] = score;
}

}  // namespace

cudaError_t attention_growth_cuda(const ProbeLayer& lower, const ProbeLayer& upper, const ProbeShape& shape,
                                  bool relu_per_head, const GrowthDirection& direction, float* out,
                                  cudaStream_t stream) {
  const int pack = std::min(pack_of_layer(lower, shape), pack_of_layer(upper, shape));
  for (int64_t first = 0; first < shape.num_groups; first += ProbeGroupBounds::kMaxGroups) {
    const ProbeGroupBounds groups = probe_group_bounds(shape, first);
    const int64_t columns = groups.bound[groups.count - 1].column_end - groups.first_column;
    if (columns == 0) continue;
    const auto grid = static_cast<unsigned>((columns + kColumnWarps - 1) / kColumnWarps);
    visit_pack(pack, [&]<int N>(std::integral_constant<int, N>) {
      visit_element(shape.type, [&]<typename T>(T*) {
        growth_kernel<N, T>
            <<<grid, kColumnWarps * kWarpSize, 0, stream>>>(lower, upper, shape, groups, relu_per_head, direction, out);
      });
    });
    if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace espalier::kernels
