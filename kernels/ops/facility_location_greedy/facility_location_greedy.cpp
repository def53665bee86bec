// SPDX-License-Identifier: Apache-2.0
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "espalier/ops.h"
#include "kernels/ops/facility_location_greedy/facility_location_greedy_arguments.h"
#include "kernels/ops/max_min_select/max_min_select_arguments.h"
#include "kernels/support/dispatch.h"

namespace espalier::kernels {

int64_t check_facility_location_greedy(const at::Tensor& features, const at::Tensor& block_begin,
                                       const at::Tensor& num_kept, const std::optional<at::Tensor>& modular,
                                       const std::optional<at::Tensor>& forced) {
  const int64_t total = check_row_selection("facility_location_greedy", features, block_begin, num_kept, forced);
  if (modular.has_value() && modular->defined())
    TORCH_CHECK(modular->dim() == 1 && modular->size(0) == features.size(0) && modular->scalar_type() == at::kFloat &&
                    modular->device() == features.device(),
                "facility_location_greedy: modular must be Float [", features.size(0), "] on ", features.device(),
                ", got ", modular->scalar_type(), " ", modular->sizes(), " on ", modular->device());
  return total;
}

}  // namespace espalier::kernels

namespace espalier::ops {

namespace {

Tensor facility_location_greedy_meta(const Tensor& features, const Tensor& block_begin, const Tensor& num_kept,
                                     std::string_view similarity, double, const OptionalTensor& modular,
                                     const OptionalTensor& forced) {
  choice_named<Similarity>(similarity);
  const int64_t total = kernels::check_facility_location_greedy(features, block_begin, num_kept, modular, forced);
  return at::empty({total}, features.options().dtype(at::kLong));
}

}  // namespace

Tensor facility_location_greedy(const Tensor& features, const Tensor& block_begin, const Tensor& num_kept,
                                Similarity similarity, double coverage_scale, const OptionalTensor& modular,
                                const OptionalTensor& forced) {
  static const auto op = find_op<decltype(facility_location_greedy_meta)>("facility_location_greedy");
  return op.call(features, block_begin, num_kept, choice_name(similarity), coverage_scale, modular, forced);
}

TORCH_LIBRARY_IMPL(espalier, Meta, m) {
  m.impl("facility_location_greedy", facility_location_greedy_meta);
}

}  // namespace espalier::ops
