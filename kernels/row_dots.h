// SPDX-License-Identifier: Apache-2.0
// Dot products of rows in float32 accumulation. Not a general matrix product: rows come as pointers (so that gathered
// tokens need no copy) and every product is summed in the same order wherever it stands, so that equal rows give
// bitwise equal products.
#pragma once

#include <cstdint>

#include "kernels/element_type.h"

namespace espalier::kernels {

inline int64_t element_size(ElementType type) {
  return type == ElementType::kFloat32 ? 4 : 2;
}

// Element i of an array of this type, as float32.
float load_element(const void* data, int64_t i, ElementType type);

}  // namespace espalier::kernels
