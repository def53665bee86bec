// SPDX-License-Identifier: Apache-2.0
#include "kernels/support/cpu_level.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace espalier::kernels {

namespace {

// Linux gives a process matrix registers on request (arch_prctl with ARCH_REQ_XCOMP_PERM for XTILEDATA), for all of its
// threads; a second request does no harm.
bool are_tiles_granted() {
  constexpr long kRequest = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

// Features that clang 14 has no names for, by their bits of CPUID. That the system keeps their registers follows from
// the features that they extend.
struct Feature {
  unsigned leaf;
  int place;  // 0: eax, 1: ebx, 2: ecx, 3: edx
  int bit;
};
constexpr Feature kF16c{1, 2, 29}, kAmxBf16{7, 3, 22}, kAvx512Fp16{7, 3, 23}, kAmxTile{7, 3, 24};

bool has(const Feature& feature) {
  unsigned words[4] = {};
  return __get_cpuid_count(feature.leaf, 0, &words[0], &words[1], &words[2], &words[3]) != 0 &&
         (words[feature.place] >> feature.bit & 1U) != 0;
}

CpuLevel ask() {
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has(kF16c);
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx512bf16");
  if (!has_avx2) return CpuLevel::kPlain;
  if (!has_avx512) return CpuLevel::kAvx2;
  return has(kAmxTile) && has(kAmxBf16) && are_tiles_granted() ? CpuLevel::kAmx : CpuLevel::kAvx512;
}

}  // namespace

CpuLevel cpu_level() {
  static const CpuLevel level = ask();
  return level;
}

bool has_avx512_fp16() {
  static const bool has_it = cpu_level() >= CpuLevel::kAvx512 && has(kAvx512Fp16);
  return has_it;
}

std::string_view name_of(CpuLevel level) {
  constexpr std::string_view names[] = {"plain", "AVX2", "AVX-512", "AMX"};
  return names[static_cast<int>(level)];
}

}  // namespace espalier::kernels
