// SPDX-License-Identifier: Apache-2.0
// Blocked attention with AVX-512.
#include "kernels/ops/attention/attention_avx512.h"

namespace espalier::kernels {

const AttentionKernels* attention_avx512(ElementType dtype) {
  static constexpr AttentionKernels kBf16 = kernels_of<Bf16Dot>("avx512_bf16");
  static constexpr AttentionKernels kFloat32 = kernels_of<Float32>("avx512_f32");
  static constexpr AttentionKernels kFloat16 = kernels_of<Float16>("avx512_f32");
  if (dtype == ElementType::kBFloat16) return &kBf16;
  return dtype == ElementType::kFloat32 ? &kFloat32 : &kFloat16;
}

}  // namespace espalier::kernels
