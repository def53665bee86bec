// SPDX-License-Identifier: Apache-2.0
#include "kernels/support/cpu_level.h"

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

CpuLevel ask() {
  const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx512bf16");
  if (!has_avx2) return CpuLevel::kPlain;
  if (!has_avx512) return CpuLevel::kAvx2;
  const bool has_amx = __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16");
  return has_amx && are_tiles_granted() ? CpuLevel::kAmx : CpuLevel::kAvx512;
}

}  // namespace

CpuLevel cpu_level() {
  static const CpuLevel level = ask();
  return level;
}

}  // namespace espalier::kernels
