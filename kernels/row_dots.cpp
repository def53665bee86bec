// SPDX-License-Identifier: Apache-2.0
#include "kernels/row_dots.h"

#include <bit>

namespace espalier::kernels {

namespace {

// Half to float: the exponent is rebased by one multiplication, which also normalises subnormals; infinities and NaN
// are put right after.
float half_to_float(uint16_t half) {
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7fffU) << 13;
  float value = std::bit_cast<float>(magnitude) * 0x1p112F;
  if ((half & 0x7c00U) == 0x7c00U) value = std::bit_cast<float>(magnitude | 0x7f800000U);
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | static_cast<uint32_t>(half & 0x8000U) << 16);
}

}  // namespace

float load_element(const void* data, int64_t i, ElementType type) {
  if (type == ElementType::kFloat32) return static_cast<const float*>(data)[i];
  const uint16_t bits = static_cast<const uint16_t*>(data)[i];
  return type == ElementType::kBFloat16 ? std::bit_cast<float>(static_cast<uint32_t>(bits) << 16) : half_to_float(bits);
}

}  // namespace espalier::kernels
