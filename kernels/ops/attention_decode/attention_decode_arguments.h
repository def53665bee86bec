// SPDX-License-Identifier: Apache-2.0
// The argument checks that attention_decode's devices share.
#pragma once

#include "espalier/ops.h"

namespace espalier::ops {

// The op's tensor arguments under their names.
struct AttentionDecodeInputs {
  const Tensor &query, &key, &value, &key_begin, &key_length;
  int64_t max_length;
  double scale;
  int64_t window;
  const OptionalTensor &query_position, &key_position;
};

// Shapes, dtypes and options; not the values of key_begin and key_length, which may lie on a GPU.
void check_attention_decode(const AttentionDecodeInputs& in);

}  // namespace espalier::ops
