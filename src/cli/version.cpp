// SPDX-License-Identifier: Apache-2.0
#include "cli/version.h"

#include "kernels/support/cpu_level.h"

namespace espalier::cli {

namespace {

const char* name_of(kernels::CpuLevel level) {
  switch (level) {
    case kernels::CpuLevel::kPlain:
      return "plain (no AVX2)";
    case kernels::CpuLevel::kAvx2:
      return "AVX2";
    case kernels::CpuLevel::kAvx512:
      return "AVX-512";
    case kernels::CpuLevel::kAmx:
      return "AMX";
  }
  return "";
}

}  // namespace

std::string version_text() {
  return std::string("espalier ") + ESPALIER_VERSION + "\ncommit   " + ESPALIER_COMMIT + "\nlibtorch " +
         ESPALIER_LIBTORCH + "\nCUDA     " + ESPALIER_CUDA_TOOLKIT + "\ncompiler " + ESPALIER_COMPILER + "\nkernels  " +
         name_of(kernels::cpu_level());
}

}  // namespace espalier::cli
