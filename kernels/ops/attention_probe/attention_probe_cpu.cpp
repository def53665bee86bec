// SPDX-License-Identifier: Apache-2.0
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/ops/attention_probe/attention_probe.h"
#include "kernels/ops/attention_probe/attention_probe_arguments.h"
#include "kernels/ops/attention_probe/attention_probe_tile.h"
#include "kernels/support/chosen_kernels.h"
#include "kernels/support/dispatch.h"
#include "kernels/support/row_dots.h"

namespace espalier::kernels {

float attention_probability_plain(const ProbeLayer& layer, const ProbeShape& shape, int64_t head, int64_t row,
                                  int64_t column) {
  const float lse = layer.lse[head * shape.num_queries + row];
  if (lse == -std::numeric_limits<float>::infinity()) return 0.0F;
  const int64_t own = shape.own_key != nullptr ? shape.own_key[row] : row;
  if (shape.is_causal && column > own) return 0.0F;
  if (shape.window > 0 && shape.position[own] - shape.window >= shape.position[column]) return 0.0F;
  const int64_t kv_head = head / (shape.num_heads / shape.num_kv_heads);
  float dot = 0.0F;
  for (int64_t i = 0; i < shape.d; ++i) {
    dot += load_element(layer.query, row * layer.query_stride + head * shape.d + i, shape.type) *
           load_element(layer.key, column * layer.key_stride + kv_head * shape.d + i, shape.type);
  }
  return std::exp(shape.scale * dot - lse);
}

void attention_probe_plain(const ProbeLayer& layer, const ProbeShape& shape, ops::HeadReduction heads, bool reduce_rows,
                           float* out) {
  const int64_t h = shape.num_heads;
  const int64_t r = shape.row_begin[shape.num_groups], c = shape.column_begin[shape.num_groups];
  const int64_t kept_heads = heads == ops::HeadReduction::kEach ? h : 1, kept_rows = reduce_rows ? 1 : r;
  std::fill(out, out + kept_heads * kept_rows * c, 0.0F);
  for (int64_t group = 0; group < shape.num_groups; ++group) {
    const int64_t first = shape.row_begin[group], last = shape.row_begin[group + 1];
    for (int64_t j = shape.column_begin[group]; j < shape.column_begin[group + 1]; ++j) {
      for (int64_t i = first; i < last; ++i) {
        const float share = reduce_rows ? 1.0F / static_cast<float>(last - first) : 1.0F;
        float reduced = 0.0F;
        for (int64_t head = 0; head < h; ++head) {
          const float p = attention_probability_plain(layer, shape, head, shape.rows[i], shape.columns[j]);
          if (heads == ops::HeadReduction::kEach) out[(head * kept_rows + (reduce_rows ? 0 : i)) * c + j] += share * p;
          reduced = heads == ops::HeadReduction::kMax ? std::max(reduced, p) : reduced + p / static_cast<float>(h);
        }
        if (heads != ops::HeadReduction::kEach) out[(reduce_rows ? 0 : i) * c + j] += share * reduced;
      }
    }
  }
}

ProbeGroupBounds probe_group_bounds(const ProbeShape& shape, int64_t first_group) {
  ProbeGroupBounds bounds{first_group,
                          shape.column_begin[first_group],
                          std::min(ProbeGroupBounds::kMaxGroups, shape.num_groups - first_group),
                          {}};
  for (int64_t i = 0; i < bounds.count; ++i) {
    const int64_t group = first_group + i;
    bounds.bound[i] = {shape.row_begin[group], shape.row_begin[group + 1], shape.column_begin[group + 1]};
  }
  return bounds;
}

}  // namespace espalier::kernels

namespace espalier::ops {

namespace {

Tensor attention_probe_cpu(const AttentionProbeCall& in) {
  const kernels::LayerPointers layer("attention_probe", in.layer);
  const kernels::GroupPointers groups("attention_probe", kernels::groups_of(in));
  kernels::check_probe_reduction(in);
  Tensor out = kernels::empty_probe_result(in);
  kernels::note_kernel("attention_probe", kernels::probability_kernel_name(groups.shape, kernels::cpu_level()));
  kernels::attention_probe_blocked(layer.layer, groups.shape, in.heads, in.reduce_rows, kernels::cpu_level(),
                                   out.mutable_data_ptr<float>());
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CPU, m) {
  m.impl("attention_probe", Unpacked<AttentionProbeSignature, attention_probe_cpu>::call);
}

}  // namespace espalier::ops
