// SPDX-License-Identifier: Apache-2.0
// What towers, projectors and decoders are made of: linear layers, norms and activations, how a model's tensors are
// asked for by name, and how they are applied. Shapes are PyTorch's: [out, in] for linear layers.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>

namespace espalier {

enum class Activation : uint8_t { kQuickGelu, kGelu, kGeluTanh, kRelu, kSilu };

struct Linear {
  at::Tensor weight;     // [out, in]
  at::Tensor bias = {};  // [out], or undefined
};

struct LayerNorm {
  at::Tensor weight, bias;  // [d]
};

// Gives the tensor of a canonical name (src/model/checkpoint.h), or throws Error when it is missing or has another
// shape.
using WeightSource = std::function<at::Tensor(const std::string& name, at::IntArrayRef shape)>;

Linear bind_linear(const WeightSource& source, const std::string& name, int64_t out, int64_t in, bool has_bias = true);
LayerNorm bind_layer_norm(const WeightSource& source, const std::string& name, int64_t d);

// Over the last dimension of x.
at::Tensor apply(const Linear& linear, const at::Tensor& x);
at::Tensor apply(const LayerNorm& norm, const at::Tensor& x, double eps);
at::Tensor apply(Activation activation, const at::Tensor& x);

}  // namespace espalier
