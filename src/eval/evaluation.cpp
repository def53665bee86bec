// SPDX-License-Identifier: Apache-2.0
#include "espalier/evaluation.h"

#include <nlohmann/json.hpp>

#include "espalier/error.h"
#include "eval/evaluate.h"
#include "eval/report.h"
#include "runtime/result_json.h"

namespace espalier {

std::optional<std::string> evaluate(const Engine& engine, const EvaluationOptions& options,
                                    const EvaluationCallbacks& callbacks) {
  if (options.items < 1) throw Error("items: 1 or more were expected, got " + std::to_string(options.items));
  if (options.side && (*options.side < 28 || *options.side > 1344))
    throw Error("side: 28 to 1344 pixels were expected, got " + std::to_string(*options.side));
  eval::EvalOptions asked{.policies = {},
                          .cells = synth::select_cells(options.suites),
                          .seed = options.seed,
                          .items = options.items,
                          .difficulty = synth::difficulty_named(options.difficulty),
                          .side = options.side.value_or(eval::side_for(engine)),
                          .with_controls = options.with_controls};
  for (const EvaluatedPolicy& policy : options.policies) {
    if (!policy.custom) {
      asked.policies.push_back(eval::eval_policy(policy.spec, [](const std::string& s) { return make_policy(s); }));
      continue;
    }
    asked.policies.push_back(
        {.spec = policy.spec,
         .draws = 1,
         .make = [custom = policy.custom](const std::shared_ptr<const synth::Item>&, uint64_t, int) { return custom; },
         .fixed = policy.custom});
  }
  const eval::EvalResult result =
      eval::evaluate(engine, asked, {.show = callbacks.on_progress, .should_cancel = callbacks.should_cancel});
  if (!result.is_complete) return std::nullopt;
  return to_json(result,
                 {.difficulty = options.difficulty, .seed = options.seed, .items = options.items, .command = {}},
                 json_head(engine));
}

}  // namespace espalier
