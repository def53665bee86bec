// SPDX-License-Identifier: Apache-2.0
#include "model/projector.h"

namespace espalier {

at::Tensor project(const ProjectorWeights& weights, Activation activation, const at::Tensor& features) {
  return apply(weights.linear2, apply(activation, apply(weights.linear1, features)));
}

}  // namespace espalier
