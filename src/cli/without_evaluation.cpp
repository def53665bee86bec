// SPDX-License-Identifier: Apache-2.0
// In place of synth.cpp and eval.cpp in a build without ESPALIER_EVALUATION.
#include "cli/left_out.h"

namespace espalier::cli {

Run add_synth(CLI::App& app) {
  return add_left_out(app);
}
Run add_eval(CLI::App& app) {
  return add_left_out(app);
}

}  // namespace espalier::cli
