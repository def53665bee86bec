// SPDX-License-Identifier: Apache-2.0
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "espalier/ops.h"
#include "kernels/ops/merge_states/merge_states.h"
#include "kernels/ops/merge_states/merge_states_arguments.h"
#include "kernels/support/chosen_kernels.h"
#include "kernels/support/cpu_level.h"
#include "kernels/support/tensor_checks.h"

namespace espalier::kernels {

MergeWeights merge_weights(float lse_a, float lse_b) {
  const float peak = std::max(lse_a, lse_b);
  if (peak == -std::numeric_limits<float>::infinity()) return {0.0F, 0.0F, peak};
  const float a = std::exp(lse_a - peak), b = std::exp(lse_b - peak), total = a + b;
  return {a / total, b / total, peak + std::log(total)};
}

template <typename T>
void merge_row_plain(const T* a, const T* b, MergeWeights weight, int64_t d, T* out) {
  for (int64_t i = 0; i < d; ++i) {
    const float from_a = weight.a == 0 ? 0.0F : weight.a * static_cast<float>(a[i]);
    const float from_b = weight.b == 0 ? 0.0F : weight.b * static_cast<float>(b[i]);
    out[i] = static_cast<T>(from_a + from_b);
  }
}

template void merge_row_plain(const float*, const float*, MergeWeights, int64_t, float*);
template void merge_row_plain(const c10::BFloat16*, const c10::BFloat16*, MergeWeights, int64_t, c10::BFloat16*);
template void merge_row_plain(const c10::Half*, const c10::Half*, MergeWeights, int64_t, c10::Half*);

}  // namespace espalier::kernels

namespace espalier::ops {
namespace {

constexpr int64_t kElementsPerTask = 1 << 14;  // read, scaled and added

// Rows [begin, end) of all heads; their weights first, head by head as the lse lie.
void merge_rows(const MergeStatesTensors& tensors, kernels::MergeRowsLoop* vector, int64_t begin, int64_t end) {
  const kernels::MergeStatesProblem& p = tensors.problem;
  const int64_t h = p.num_heads, d = p.head_dim, count = (end - begin) * h;
  std::vector<kernels::MergeWeights> weights(count);
  for (int64_t head = 0; head < h; ++head)
    for (int64_t row = begin; row < end; ++row) {
      const kernels::MergeWeights w =
          kernels::merge_weights(p.a.lse[head * p.a.lse_stride + row], p.b.lse[head * p.b.lse_stride + row]);
      p.lse[head * p.num_rows + row] = w.lse;
      weights[(row - begin) * h + head] = w;
    }
  kernels::visit_element_type(tensors.output, "merge_states", [&]<typename T>(T) {
    const T *a = static_cast<const T*>(p.a.output) + begin * h * d,
            *b = static_cast<const T*>(p.b.output) + begin * h * d;
    T* out = static_cast<T*>(p.output) + begin * h * d;
    if (vector != nullptr) return vector(p.type, a, b, weights.data(), count, d, out);
    for (int64_t i = 0; i < count; ++i) kernels::merge_row_plain(a + i * d, b + i * d, weights[i], d, out + i * d);
  });
}

std::tuple<Tensor, Tensor> merge_states_cpu(const Tensor& output_a, const Tensor& lse_a, const Tensor& output_b,
                                            const Tensor& lse_b) {
  const MergeStatesTensors tensors(output_a, lse_a, output_b, lse_b);
  kernels::note_kernel("merge_states", kernels::vector_kernel_name(kernels::cpu_level()));
  kernels::MergeRowsLoop* vector =
      kernels::vector_form(kernels::cpu_level(), kernels::avx2::merge_rows, kernels::avx512::merge_rows);
  const int64_t row = std::max<int64_t>(1, tensors.problem.num_heads * tensors.problem.head_dim);
  at::parallel_for(0, tensors.problem.num_rows, std::max<int64_t>(1, kElementsPerTask / row),
                   [&](int64_t begin, int64_t end) { merge_rows(tensors, vector, begin, end); });
  return {tensors.output, tensors.lse};
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CPU, m) {
  m.impl("merge_states", merge_states_cpu);
}

}  // namespace espalier::ops
