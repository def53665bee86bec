// SPDX-License-Identifier: Apache-2.0
#include "espalier/version.h"

namespace espalier {

const char* version() {
  return ESPALIER_VERSION;
}

}  // namespace espalier
