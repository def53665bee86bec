// SPDX-License-Identifier: Apache-2.0
// What the families' pixel batches share: one refusal for all of them.
#pragma once

#include <ATen/core/Tensor.h>

namespace espalier {

// Throws Error unless `batch` is float32 of the `expected` shape, the one that the pictures at hand make.
void check_pixel_batch(const at::Tensor& batch, at::IntArrayRef expected);

}  // namespace espalier
