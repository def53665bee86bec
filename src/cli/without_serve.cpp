// SPDX-License-Identifier: Apache-2.0
// In place of serve.cpp in a build without ESPALIER_SERVE.
#include "cli/left_out.h"

namespace espalier::cli {

Run add_serve(CLI::App& app) {
  return add_left_out(app);
}

}  // namespace espalier::cli
