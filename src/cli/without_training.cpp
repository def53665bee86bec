// SPDX-License-Identifier: Apache-2.0
// In place of train_demo.cpp and train_atp.cpp in a build without ESPALIER_TRAINING.
#include "cli/left_out.h"

namespace espalier::cli {

Run add_train_demo(CLI::App& app) {
  return add_left_out(app);
}
Run add_train_atp(CLI::App& app) {
  return add_left_out(app);
}

}  // namespace espalier::cli
