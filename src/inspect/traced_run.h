// SPDX-License-Identifier: Apache-2.0
// One request, run with everything that `espalier inspect` shows.
#pragma once

#include "espalier/engine.h"
#include "inspect/page.h"

namespace espalier {

// Runs the request and keeps what the callbacks of trace.h are told, as any program may. A cancelled run has the finish
// reason kCancelled and perhaps no prompt.
InspectedRun traced_run(const Engine& engine, const Request& request, Callbacks callbacks);

}  // namespace espalier
