// SPDX-License-Identifier: Apache-2.0
// The element types our kernels compute with, for files that must not know torch (.cu, *_avx*.cpp). The torch side:
// tensor_checks.h.
#pragma once

#include <cstdint>

namespace espalier::kernels {

enum class ElementType : uint8_t { kFloat32, kBFloat16, kFloat16 };

}  // namespace espalier::kernels
