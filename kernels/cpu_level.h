// SPDX-License-Identifier: Apache-2.0
// Which vector instructions this machine has; asked once. Kernels compiled with AVX flags are called only behind this.
#pragma once

#include <cstdint>

namespace espalier::kernels {

enum class CpuLevel : uint8_t { kPlain, kAvx2, kAvx512 };

// kAvx512 means F, BW, DQ, VL and BF16 (dot products); kAvx2 means AVX2, FMA and F16C.
inline CpuLevel cpu_level() {
  static const CpuLevel level = [] {
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bf16"))
      return CpuLevel::kAvx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
      return CpuLevel::kAvx2;
    return CpuLevel::kPlain;
  }();
  return level;
}

// The form of a loop for a level, which units with vector flags define in the namespaces avx2 and avx512 (see
// CMakeLists.txt); null: the plain one.
template <typename Loop>
Loop* vector_form(CpuLevel level, Loop* avx2, Loop* avx512) {
  return level == CpuLevel::kAvx512 ? avx512 : level == CpuLevel::kAvx2 ? avx2 : nullptr;
}

}  // namespace espalier::kernels
