// SPDX-License-Identifier: Apache-2.0
// Runs while building: writes policy_list.cpp, which holds what `espalier policies` prints. Only the library knows the
// table of policies, whose rows have tensors behind them.
#include <cstdio>

#include "espalier/espalier.h"

int main() {
  char program[] = "espalier", policies[] = "policies";
  char* arguments[] = {program, policies, nullptr};
  // Raw: no line of the table has )list" in it, or the unit would not compile.
  std::printf("#include \"program/policy_list.h\"\n\nconst std::string_view espalier::cli::kPolicyList = R\"list(");
  const int status = espalier_command_line(2, arguments);
  std::puts(")list\";");
  return status;
}
