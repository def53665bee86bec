// SPDX-License-Identifier: Apache-2.0
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "espalier/ops.h"
#include "kernels/ops/merge_tokens/merge_tokens.h"
#include "kernels/ops/merge_tokens/merge_tokens_arguments.h"
#include "kernels/support/chosen_kernels.h"
#include "kernels/support/cpu_level.h"
#include "kernels/support/row_arguments.h"

namespace espalier::kernels {

template <typename T>
void merge_tokens_plain(const T* x, const MergeGroups& groups, T* out, const MergeShape& shape, int64_t begin,
                        int64_t end) {
  std::vector<float> sum(static_cast<size_t>(shape.d));
  for (int64_t group = begin; group < end; ++group) {
    std::fill(sum.begin(), sum.end(), 0.0F);
    float total = 0.0F;
    for (int64_t j = groups.group_begin[group]; j < groups.group_begin[group + 1]; ++j) {
      const float weight = groups.weight == nullptr ? 1.0F : groups.weight[j];
      const T* row = x + groups.index[j] * shape.stride;
      total += weight;
      for (int64_t i = 0; i < shape.d; ++i) sum[i] += weight * static_cast<float>(row[i]);
    }
    T* mean = out + group * shape.d;
    for (int64_t i = 0; i < shape.d; ++i) mean[i] = static_cast<T>(total == 0.0F ? 0.0F : sum[i] / total);
  }
}

template void merge_tokens_plain(const float*, const MergeGroups&, float*, const MergeShape&, int64_t, int64_t);
template void merge_tokens_plain(const c10::BFloat16*, const MergeGroups&, c10::BFloat16*, const MergeShape&, int64_t,
                                 int64_t);
template void merge_tokens_plain(const c10::Half*, const MergeGroups&, c10::Half*, const MergeShape&, int64_t, int64_t);

}  // namespace espalier::kernels

namespace espalier::ops {
namespace {

constexpr int64_t kElementsPerTask = 1 << 16;

Tensor merge_tokens_cpu(const Tensor& x_in, const Tensor& index_in, const Tensor& group_begin_in,
                        const OptionalTensor& weight_in) {
  kernels::check_merge_tokens(x_in, index_in, group_begin_in, weight_in);
  const Tensor x = x_in.stride(1) == 1 ? x_in : x_in.contiguous(), index = index_in.contiguous();
  kernels::check_index_range(index.const_data_ptr<int64_t>(), index.numel(), x.size(0), "merge_tokens");
  kernels::check_offsets("merge_tokens", "group_begin", group_begin_in, index.numel());
  const Tensor group_begin = group_begin_in.contiguous();
  const Tensor weight = weight_in.has_value() && weight_in->defined() ? weight_in->contiguous() : Tensor();
  const kernels::ElementType type = kernels::element_type(x, "merge_tokens");
  const kernels::CpuLevel level = kernels::cpu_level();
  kernels::note_kernel("merge_tokens", kernels::vector_kernel_name(level));
  kernels::MergeTokensLoop* vector =
      kernels::vector_form(level, kernels::avx2::merge_tokens, kernels::avx512::merge_tokens);
  const int64_t num_groups = group_begin.size(0) - 1, d = x.size(1);
  Tensor out = at::empty({num_groups, d}, x.options());
  const kernels::MergeGroups groups{index.const_data_ptr<int64_t>(), group_begin.const_data_ptr<int64_t>(),
                                    weight.defined() ? weight.const_data_ptr<float>() : nullptr};
  const int64_t elements_a_group =
      std::max<int64_t>(d * (index.numel() + num_groups), 1) / std::max<int64_t>(num_groups, 1);
  const int64_t groups_per_task = std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(elements_a_group, 1));
  at::parallel_for(0, num_groups, groups_per_task, [&](int64_t begin, int64_t end) {
    const kernels::MergeShape shape{d, x.stride(0)};
    if (vector != nullptr) return vector(type, x.const_data_ptr(), groups, out.mutable_data_ptr(), shape, begin, end);
    kernels::visit_element_type(x, "merge_tokens", [&]<typename T>(T) {
      kernels::merge_tokens_plain(x.const_data_ptr<T>(), groups, out.mutable_data_ptr<T>(), shape, begin, end);
    });
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CPU, m) {
  m.impl("merge_tokens", merge_tokens_cpu);
}

}  // namespace espalier::ops
