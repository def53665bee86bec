// SPDX-License-Identifier: Apache-2.0
// One request, run with everything that `espalier inspect` shows.
#pragma once

#include "inspect/page.h"
#include "runtime/loaded_model.h"

namespace espalier {

// Runs the request with traces. A cancelled run has the finish reason kCancelled and perhaps no layout.
InspectedRun traced_run(const LoadedModel& model, Request request, const Callbacks& callbacks);

}  // namespace espalier
