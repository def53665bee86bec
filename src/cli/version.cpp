// SPDX-License-Identifier: Apache-2.0
#include "cli/version.h"

#include "espalier/version.h"
#include "kernels/support/cpu_level.h"

namespace espalier::cli {

std::string version_text() {
  return std::string("espalier ") + version() + "\ncommit   " + ESPALIER_COMMIT + "\nlibtorch " + ESPALIER_LIBTORCH +
         "\nCUDA     " + ESPALIER_CUDA_TOOLKIT + "\ncompiler " + ESPALIER_COMPILER + "\nkernels  " +
         std::string(name_of(kernels::cpu_level()));
}

}  // namespace espalier::cli
