// SPDX-License-Identifier: Apache-2.0
// Which vector and matrix instructions this machine has; asked once. Kernels compiled with their flags are called only
// behind this.
#pragma once

#include <cstdint>
#include <string_view>

namespace espalier::kernels {

enum class CpuLevel : uint8_t { kPlain, kAvx2, kAvx512, kAmx };

// kAvx2 means AVX2, FMA and F16C; kAvx512 also F, BW, DQ, VL and BF16 (dot products); kAmx also matrix registers with
// bf16 products, which the system has to have granted to this process.
CpuLevel cpu_level();
bool has_avx512_fp16();                    // beside kAvx512
std::string_view name_of(CpuLevel level);  // for people: plain, AVX2, AVX-512, AMX

// The form of a loop for a level, which units with vector flags define in the namespaces avx2 and avx512 (see
// CMakeLists.txt); null: the plain one.
template <typename Loop>
Loop* vector_form(CpuLevel level, Loop* avx2, Loop* avx512) {
  return level >= CpuLevel::kAvx512 ? avx512 : level == CpuLevel::kAvx2 ? avx2 : nullptr;
}

}  // namespace espalier::kernels
