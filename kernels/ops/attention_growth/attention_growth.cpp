// SPDX-License-Identifier: Apache-2.0
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "espalier/ops.h"
#include "kernels/ops/attention_growth/attention_growth_arguments.h"
#include "kernels/support/dispatch.h"
#include "kernels/support/meta_shapes.h"

namespace espalier::kernels {

void check_growth(const ops::AttentionGrowthCall& in) {
  const auto& [query_lower, key_lower, lse_lower] = in.lower;
  const auto& [query_upper, key_upper, lse_upper] = in.upper;
  const std::optional<at::Tensor>&hidden = in.hidden, &direction = in.direction;
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
                  direction->size(0) == in.row_begin.size(0) - 1 && direction->size(1) == hidden->size(1),
              "attention_growth: hidden [", key_lower.size(0), ", w] and direction [", in.row_begin.size(0) - 1,
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

namespace {

const ops::AttentionGrowthCall& checked(const ops::AttentionGrowthCall& call) {
  check_growth(call);
  return call;
}

}  // namespace

GrowthPointers::GrowthPointers(const ops::AttentionGrowthCall& call)
    : lower("attention_growth", call.lower),
      upper("attention_growth", call.upper),
      groups("attention_growth", groups_of(call)),
      direction(checked(call).hidden, call.direction, call.cosine_weight),
      out(at::empty({call.columns.size(0)}, call.lower.lse.options())) {}

}  // namespace espalier::kernels

namespace espalier::ops {

namespace {

Tensor attention_growth_meta(const AttentionGrowthCall& in) {
  const AttendedLayer &a = in.lower, &b = in.upper;
  if (has_plain_sizes(a.query, a.key, a.lse, b.query, b.key, b.lse, in.rows, in.row_begin, in.columns, in.column_begin,
                      in.position, in.hidden, in.direction, in.own_key)) {
    kernels::check_probe_layer("attention_growth", a);
    kernels::check_probe_layer("attention_growth", b);
    kernels::check_probe_groups("attention_growth", kernels::groups_of(in));
    kernels::check_growth(in);
  }
  return at::empty_symint({in.columns.sym_size(0)}, a.lse.options());
}

}  // namespace

Tensor attention_growth(const AttentionGrowthCall& c) {
  static const auto op = find_op<AttentionGrowthSignature>("attention_growth");
  return op.call(c.lower.query, c.lower.key, c.lower.lse, c.upper.query, c.upper.key, c.upper.lse, c.rows, c.row_begin,
                 c.columns, c.column_begin, c.scale, c.relu_per_head, c.window, c.position, c.hidden, c.direction,
                 c.cosine_weight, c.own_key);
}

TORCH_LIBRARY_IMPL(espalier, Meta, m) {
  m.impl("attention_growth", Unpacked<AttentionGrowthSignature, attention_growth_meta>::call);
}

}  // namespace espalier::ops
