// SPDX-License-Identifier: Apache-2.0
#include "inspect/traced_run.h"

#include <utility>

#include "runtime/generate.h"

namespace espalier {

InspectedRun traced_run(const LoadedModel& model, Request request, const Callbacks& callbacks) {
  request.trace = true;
  InspectedRun run{.policy = request.policy, .layout = nullptr, .result = {}};
  RunHooks hooks;
  hooks.encode.on_embedded = [&](const TokenLayout& layout, const at::Tensor&) { run.layout = layout.prompt; };
  run.result = std::move(generate_batch(model, {&request, 1}, callbacks, hooks).front());
  return run;
}

}  // namespace espalier
