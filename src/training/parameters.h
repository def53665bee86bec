// SPDX-License-Identifier: Apache-2.0
// The trainable tensors of a run by name: float32 masters, drawn from a seed or read from a folder, and bound as model
// weights in the compute dtype. What they are trained for is not known here.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "families/llava/config.h"
#include "families/llava/tower.h"
#include "model/weights.h"

namespace espalier {

struct Parameter {
  std::string name;
  at::Tensor master;  // float32 leaf
};

class Parameters {
 public:
  void add(std::string name, const at::Tensor& value);  // a copy in float32, without a gradient
  bool has(std::string_view name) const;
  const at::Tensor& at(std::string_view name) const;  // throws Error for a name that is not there
  void set(std::string_view name, const at::Tensor& value);

  // Asks for gradients of the names that begin with one of `prefixes` and none of `except`, and of no others; these, in
  // their order.
  std::vector<Parameter> train_only(const std::vector<std::string>& prefixes,
                                    const std::vector<std::string>& except = {});

  const std::vector<Parameter>& all() const { return all_; }

 private:
  std::vector<Parameter> all_;
};

// The demo model's tensors.
struct LlavaWeights {
  ClipWeights vision;
  ProjectorWeights projector;
  DecoderWeights decoder;
};
LlavaWeights bind_weights(const LlavaConfig& config, const WeightSource& source);

// Every tensor of a checkpoint of this config, the tower's last norm included. A tensor depends on the seed and its
// name alone.
Parameters initial_parameters(const LlavaConfig& config, uint64_t seed);

// A normal matrix [out, in] of variance 1 / in, as `initial_parameters` draws linear layers.
at::Tensor initial_linear(const std::string& name, int64_t out, int64_t in, uint64_t seed);

// The masters cast to `dtype`; differentiable, so that gradients arrive at the masters in float32.
LlavaWeights bind_parameters(const LlavaConfig& config, const Parameters& parameters, at::ScalarType dtype);

}  // namespace espalier
