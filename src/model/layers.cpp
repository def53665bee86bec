// SPDX-License-Identifier: Apache-2.0
#include "model/layers.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/silu.h>

#include "espalier/ops.h"

namespace espalier {

Linear bind_linear(const WeightSource& source, const std::string& name, int64_t out, int64_t in, bool has_bias) {
  return {source(name + ".weight", {out, in}), has_bias ? source(name + ".bias", {out}) : at::Tensor()};
}

LayerNorm bind_layer_norm(const WeightSource& source, const std::string& name, int64_t d) {
  return {source(name + ".weight", {d}), source(name + ".bias", {d})};
}

at::Tensor apply(const Linear& linear, const at::Tensor& x) {
  return ops::linear(x, linear.weight, linear.bias);
}

at::Tensor apply(const LayerNorm& norm, const at::Tensor& x, double eps) {
  return at::layer_norm(x, {x.size(-1)}, norm.weight, norm.bias, eps);
}

at::Tensor apply(Activation activation, const at::Tensor& x) {
  switch (activation) {
    case Activation::kQuickGelu:
      return x * at::sigmoid(1.702 * x);
    case Activation::kGelu:
      return at::gelu(x);
    case Activation::kGeluTanh:
      return at::gelu(x, "tanh");
    case Activation::kRelu:
      return at::relu(x);
    case Activation::kSilu:
      return at::silu(x);
  }
  TORCH_CHECK(false, "activation ", static_cast<int>(activation), " is not one");
}

}  // namespace espalier
