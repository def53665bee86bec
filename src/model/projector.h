// SPDX-License-Identifier: Apache-2.0
// The two linear layers between a vision tower and the decoder.
#pragma once

#include <ATen/core/Tensor.h>

#include "model/layers.h"

namespace espalier {

struct ProjectorWeights {
  Linear linear1, linear2;
};

// features [..., d_v] -> [..., d].
at::Tensor project(const ProjectorWeights& weights, Activation activation, const at::Tensor& features);

}  // namespace espalier
