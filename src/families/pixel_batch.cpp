// SPDX-License-Identifier: Apache-2.0
#include "families/pixel_batch.h"

#include <c10/util/StringUtil.h>

#include "espalier/error.h"

namespace espalier {

void check_pixel_batch(const at::Tensor& batch, at::IntArrayRef expected) {
  if (batch.scalar_type() != at::kFloat || batch.sizes() != expected)
    throw Error(c10::str("pixel values: these pictures make float32 ", expected, ", got ", batch.sizes()));
}

}  // namespace espalier
