// SPDX-License-Identifier: Apache-2.0
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "espalier/ops.h"
#include "kernels/ops/greedy_dpp/greedy_dpp_arguments.h"
#include "kernels/support/dispatch.h"

namespace espalier::kernels {

int64_t check_greedy_dpp(const at::Tensor& features, const at::Tensor& relevance, const at::Tensor& block_begin,
                         const at::Tensor& num_kept, const std::optional<at::Tensor>& forced) {
  const int64_t total = check_row_selection("greedy_dpp", features, block_begin, num_kept, forced);
  TORCH_CHECK(relevance.dim() == 1 && relevance.size(0) == features.size(0) && relevance.scalar_type() == at::kFloat &&
                  relevance.device() == features.device(),
              "greedy_dpp: relevance must be Float [", features.size(0), "] on ", features.device(), ", got ",
              relevance.scalar_type(), " ", relevance.sizes(), " on ", relevance.device());
  return total;
}

}  // namespace espalier::kernels

namespace espalier::ops {

namespace {

Tensor greedy_dpp_meta(const Tensor& features, const Tensor& relevance, const Tensor& block_begin,
                       const Tensor& num_kept, const OptionalTensor& forced) {
  const int64_t total = kernels::check_greedy_dpp(features, relevance, block_begin, num_kept, forced);
  return at::empty({total}, features.options().dtype(at::kLong));
}

}  // namespace

Tensor greedy_dpp(const Tensor& features, const Tensor& relevance, const Tensor& block_begin, const Tensor& num_kept,
                  const OptionalTensor& forced) {
  static const auto op = find_op<decltype(greedy_dpp_meta)>("greedy_dpp");
  return op.call(features, relevance, block_begin, num_kept, forced);
}

TORCH_LIBRARY_IMPL(espalier, Meta, m) {
  m.impl("greedy_dpp", greedy_dpp_meta);
}

}  // namespace espalier::ops
