// SPDX-License-Identifier: Apache-2.0
// Ctrl-C: the first asks the running work to end, a second kills the process at once.
#pragma once

namespace espalier::cli {

struct Interrupted {};  // thrown where work has no other way to end early

void catch_interrupts();  // from now on
bool interrupted();

}  // namespace espalier::cli
