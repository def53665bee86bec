// SPDX-License-Identifier: Apache-2.0
#include "inspect/traced_run.h"

#include <utility>

namespace espalier {

InspectedRun traced_run(const Engine& engine, const Request& request, Callbacks callbacks) {
  InspectedRun run{.policy = {}, .prompt = {}, .points = {}, .result = {}};
  callbacks.on_prompt = [&](size_t, const PromptTrace& prompt) { run.prompt = prompt; };
  callbacks.on_point = [&](size_t, const PointTrace& point) { run.points.push_back(point); };
  run.result = engine.generate(request, callbacks);
  run.policy = run.result.policy;
  return run;
}

}  // namespace espalier
