// SPDX-License-Identifier: Apache-2.0
// The tensor side of attention_growth, beyond attention_probe_arguments.h: what both layers must share, and the
// pointers to the direction.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "kernels/ops/attention_growth/attention_growth.h"
#include "kernels/ops/attention_probe/attention_probe_arguments.h"

namespace espalier::kernels {

// Both layers of one shape; hidden [nk, w] and direction [groups, w] together or neither.
void check_growth(const ops::AttentionGrowthCall& call);

// Pointers to hidden and to direction as float32 (few rows: the copy is small), and the tensors that keep them alive.
struct DirectionPointers {
  at::Tensor hidden, values;
  GrowthDirection direction;

  DirectionPointers(const std::optional<at::Tensor>& hidden, const std::optional<at::Tensor>& direction, double weight);
};

// Pointers to all that a call names, which is checked on the way, and room for its result, float32 [c].
struct GrowthPointers {
  LayerPointers lower, upper;
  GroupPointers groups;
  DirectionPointers direction;
  at::Tensor out;

  explicit GrowthPointers(const ops::AttentionGrowthCall& call);
};

}  // namespace espalier::kernels

namespace espalier::ops {

// The arguments as the dispatcher passes them.
using AttentionGrowthSignature = Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                        const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                        double, bool, int64_t, const OptionalTensor&, const OptionalTensor&,
                                        const OptionalTensor&, double, const OptionalTensor&);

}  // namespace espalier::ops
