// SPDX-License-Identifier: Apache-2.0
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "espalier/ops.h"
#include "kernels/ops/attention_growth/attention_growth_arguments.h"
#include "kernels/support/meta_shapes.h"

namespace espalier::kernels {

void check_growth(const at::Tensor& query_lower, const at::Tensor& key_lower, const at::Tensor& query_upper,
                  const at::Tensor& key_upper, const at::Tensor& row_begin, const std::optional<at::Tensor>& hidden,
                  const std::optional<at::Tensor>& direction) {
  TORCH_CHECK(query_lower.sizes() == query_upper.sizes() && key_lower.sizes() == key_upper.sizes() &&
                  query_lower.scalar_type() == query_upper.scalar_type() &&
                  query_lower.device() == query_upper.device(),
              "attention_growth: both layers must have one shape, dtype and device, got ", query_lower.sizes(), " and ",
              query_upper.sizes());
  const bool has_hidden = hidden.has_value() && hidden->defined(),
             has_direction = direction.has_value() && direction->defined();
  TORCH_CHECK(has_hidden == has_direction, "attention_growth: hidden and direction come together or not at all");
  if (!has_hidden) return;
  TORCH_CHECK(hidden->dim() == 2 && hidden->size(0) == key_lower.size(0) && direction->dim() == 2 &&
                  direction->size(0) == row_begin.size(0) - 1 && direction->size(1) == hidden->size(1),
              "attention_growth: hidden [", key_lower.size(0), ", w] and direction [", row_begin.size(0) - 1,
              ", w] expected, got ", hidden->sizes(), " and ", direction->sizes());
  TORCH_CHECK(hidden->device() == query_lower.device() && direction->device() == query_lower.device(),
              "attention_growth: hidden and direction must be on ", query_lower.device(), ", got ", hidden->device(),
              " and ", direction->device());
  TORCH_CHECK(direction->is_floating_point(), "attention_growth: direction must be floating, got ",
              direction->scalar_type());
  element_type(*hidden, "attention_growth");
}

DirectionPointers::DirectionPointers(const std::optional<at::Tensor>& hidden_in,
                                     const std::optional<at::Tensor>& direction_in, double weight) {
  if (!hidden_in.has_value() || !hidden_in->defined()) return;
  hidden = hidden_in->stride(1) == 1 ? *hidden_in : hidden_in->contiguous();
  values = direction_in->to(at::kFloat).contiguous();
  direction = {.hidden = hidden.const_data_ptr(),
               .hidden_stride = hidden.stride(0),
               .hidden_type = element_type(hidden, "attention_growth"),
               .direction = values.const_data_ptr<float>(),
               .width = hidden.size(1),
               .weight = static_cast<float>(weight)};
}

}  // namespace espalier::kernels

namespace espalier::ops {

namespace {

using GrowthSignature = Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                               const Tensor&, const Tensor&, const Tensor&, const Tensor&, double, bool, int64_t,
                               const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, double,
                               const OptionalTensor&);

Tensor attention_growth_meta(const Tensor& query_lower, const Tensor& key_lower, const Tensor& lse_lower,
                             const Tensor& query_upper, const Tensor& key_upper, const Tensor& lse_upper,
                             const Tensor& rows, const Tensor& row_begin, const Tensor& columns,
                             const Tensor& column_begin, double, bool, int64_t window, const OptionalTensor& position,
                             const OptionalTensor& hidden, const OptionalTensor& direction, double,
                             const OptionalTensor& own_key) {
  if (has_plain_sizes(query_lower, key_lower, lse_lower, query_upper, key_upper, lse_upper, rows, row_begin, columns,
                      column_begin, position, hidden, direction, own_key)) {
    kernels::check_probe_layer("attention_growth", query_lower, key_lower, lse_lower);
    kernels::check_probe_layer("attention_growth", query_upper, key_upper, lse_upper);
    kernels::check_probe_groups("attention_growth", query_lower, key_lower, rows, row_begin, columns, column_begin,
                                /*is_causal=*/true, window, position, own_key);
    kernels::check_growth(query_lower, key_lower, query_upper, key_upper, row_begin, hidden, direction);
  }
  return at::empty_symint({columns.sym_size(0)}, lse_lower.options());
}

}  // namespace

Tensor attention_growth(const Tensor& query_lower, const Tensor& key_lower, const Tensor& lse_lower,
                        const Tensor& query_upper, const Tensor& key_upper, const Tensor& lse_upper, const Tensor& rows,
                        const Tensor& row_begin, const Tensor& columns, const Tensor& column_begin, double scale,
                        bool relu_per_head, int64_t window, const OptionalTensor& position,
                        const OptionalTensor& hidden, const OptionalTensor& direction, double cosine_weight,
                        const OptionalTensor& own_key) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("espalier::attention_growth", "").typed<GrowthSignature>();
  return op.call(query_lower, key_lower, lse_lower, query_upper, key_upper, lse_upper, rows, row_begin, columns,
                 column_begin, scale, relu_per_head, window, position, hidden, direction, cosine_weight, own_key);
}

TORCH_LIBRARY_IMPL(espalier, Meta, m) {
  m.impl("attention_growth", attention_growth_meta);
}

}  // namespace espalier::ops
