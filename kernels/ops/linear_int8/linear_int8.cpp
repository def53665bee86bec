// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/linear_int8/linear_int8.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "espalier/ops.h"
#include "kernels/support/dispatch.h"
#include "kernels/support/meta_shapes.h"
#include "kernels/support/tensor_checks.h"

namespace espalier::kernels {

void check_linear_int8(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& scale) {
  TORCH_CHECK(x.dim() >= 1 && weight.dim() == 2 && x.size(-1) == weight.size(1),
              "linear_int8: x [..., in] and weight [out, in] expected, got ", x.sizes(), " and ", weight.sizes());
  TORCH_CHECK(weight.scalar_type() == at::kChar, "linear_int8: weight must be int8, got ", weight.scalar_type());
  TORCH_CHECK(scale.dim() == 1 && scale.size(0) == weight.size(0) && scale.scalar_type() == at::kFloat,
              "linear_int8: scale float32 [", weight.size(0), "] expected, got ", scale.scalar_type(), " ",
              scale.sizes());
  TORCH_CHECK(x.device() == weight.device() && x.device() == scale.device(), "linear_int8: one device expected, got ",
              x.device(), ", ", weight.device(), " and ", scale.device());
  element_type(x, "linear_int8");
}

at::Tensor linear_int8_widened(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& scale) {
  constexpr int64_t kElementsAtOnce = int64_t{1} << 24;
  const int64_t out = weight.size(0),
                step = std::max<int64_t>(1, kElementsAtOnce / std::max<int64_t>(1, weight.size(1)));
  const bool is_fast = library_multiplies(x);
  std::vector<at::Tensor> parts;
  for (int64_t o = 0; o < out || parts.empty(); o += step) {
    const at::Tensor wide =
        (weight.slice(0, o, o + step).to(at::kFloat) * scale.slice(0, o, o + step).unsqueeze(1)).to(x.scalar_type());
    parts.push_back(is_fast ? at::linear(x, wide) : linear_widened(x, wide, std::nullopt));
  }
  return parts.size() == 1 ? parts.front() : at::cat(parts, -1);
}

}  // namespace espalier::kernels

namespace espalier::ops {

namespace {

Tensor linear_int8_meta(const Tensor& x, const Tensor& weight, const Tensor& scale) {
  if (has_plain_sizes(x, weight, scale)) kernels::check_linear_int8(x, weight, scale);
  auto shape = x.sym_sizes().vec();
  shape.back() = weight.sym_size(0);
  return at::empty_symint(shape, x.options());
}

}  // namespace

Tensor linear_int8(const Tensor& x, const Tensor& weight, const Tensor& scale) {
  static const auto op = find_op<decltype(linear_int8_meta)>("linear_int8");
  return op.call(x, weight, scale);
}

TORCH_LIBRARY_IMPL(espalier, Meta, m) {
  m.impl("linear_int8", linear_int8_meta);
}

}  // namespace espalier::ops
