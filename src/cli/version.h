// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

namespace espalier::cli {

// What a report of a defect should say: version, commit, compiler, libtorch, CUDA, and the kernels that this processor
// runs. Lines of "name value", the first "espalier VERSION".
std::string version_text();

}  // namespace espalier::cli
