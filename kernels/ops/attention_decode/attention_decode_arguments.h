// SPDX-License-Identifier: Apache-2.0
// What attention_decode's devices share.
#pragma once

#include "espalier/ops.h"

namespace espalier::ops {

// The arguments as the dispatcher passes them.
using AttentionDecodeSignature = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                                            const Tensor&, int64_t, double, int64_t,
                                                            const OptionalTensor&, const OptionalTensor&);

// Shapes, dtypes and options; not the values of key_begin and key_length, which may lie on a GPU.
void check_attention_decode(const AttentionDecodeCall& in);

}  // namespace espalier::ops
