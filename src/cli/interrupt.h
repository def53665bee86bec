// SPDX-License-Identifier: Apache-2.0
// Ctrl-C: the first asks the running work to end, a second kills the process at once.
#pragma once

namespace espalier::cli {

struct Interrupted {};  // thrown where work has no other way to end early

void catch_interrupts();  // from now on
void catch_stops();       // the same, and what service managers send: SIGTERM
bool interrupted();
bool stopped_by_manager();  // by SIGTERM

}  // namespace espalier::cli
