// SPDX-License-Identifier: Apache-2.0
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>

#include "kernels/ops/attention_growth/attention_growth.h"
#include "kernels/ops/attention_growth/attention_growth_arguments.h"
#include "kernels/ops/attention_probe/attention_probe_tile.h"
#include "kernels/ops/cosine_score/cosine_score.h"
#include "kernels/support/chosen_kernels.h"
#include "kernels/support/dispatch.h"

namespace espalier::kernels {

namespace {

float growth_of_column(const ProbeLayer& lower, const ProbeLayer& upper, const ProbeShape& shape, bool relu_per_head,
                       int64_t group, int64_t column) {
  const int64_t first = shape.row_begin[group], last = shape.row_begin[group + 1];
  if (first == last) return 0.0F;
  float sum = 0.0F;
  for (int64_t i = first; i < last; ++i) {
    for (int64_t head = 0; head < shape.num_heads; ++head) {
      const float difference = attention_probability_plain(upper, shape, head, shape.rows[i], column) -
                               attention_probability_plain(lower, shape, head, shape.rows[i], column);
      sum += relu_per_head ? std::max(0.0F, difference) : difference;
    }
  }
  return std::max(0.0F, sum / static_cast<float>(shape.num_heads * (last - first)));
}

}  // namespace

void attention_growth_plain(const ProbeLayer& lower, const ProbeLayer& upper, const ProbeShape& shape,
                            bool relu_per_head, const GrowthDirection& direction, float* out) {
  for (int64_t group = 0; group < shape.num_groups; ++group) {
    for (int64_t j = shape.column_begin[group]; j < shape.column_begin[group + 1]; ++j) {
      const int64_t column = shape.columns[j];
      out[j] = growth_of_column(lower, upper, shape, relu_per_head, group, column);
      if (direction.hidden == nullptr) continue;
      float cosine = 0.0F;
      cosine_score_plain(direction.hidden, direction.hidden_stride, direction.hidden_type,
                         direction.direction + group * direction.width, &column, 1, 1, direction.width, &cosine);
      out[j] += direction.weight * cosine;
    }
  }
}

}  // namespace espalier::kernels

namespace espalier::ops {

namespace {

Tensor attention_growth_cpu(const AttentionGrowthCall& in) {
  const kernels::GrowthPointers p(in);
  kernels::note_kernel("attention_growth", kernels::probability_kernel_name(p.groups.shape, kernels::cpu_level()));
  kernels::attention_growth_blocked(p.lower.layer, p.upper.layer, p.groups.shape, in.relu_per_head,
                                    p.direction.direction, kernels::cpu_level(), p.out.mutable_data_ptr<float>());
  return p.out;
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CPU, m) {
  m.impl("attention_growth", Unpacked<AttentionGrowthSignature, attention_growth_cpu>::call);
}

}  // namespace espalier::ops
