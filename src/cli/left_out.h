// SPDX-License-Identifier: Apache-2.0
// What stands for a command that a build leaves out (ESPALIER_EVALUATION, ESPALIER_TRAINING, ESPALIER_SERVE): it is
// listed, and refuses.
#pragma once

#include <CLI/App.hpp>
#include <string>

#include "cli/commands.h"
#include "espalier/error.h"

namespace espalier::cli {

inline Run add_left_out(CLI::App& app) {
  app.description("(not in this build: ./dev build makes one with every command)");
  app.allow_extras();
  app.set_help_flag();
  return [name = app.get_name()]() -> ExitStatus {
    throw Error(name + " is not in this build; ./dev build makes one with every command");
  };
}

}  // namespace espalier::cli
