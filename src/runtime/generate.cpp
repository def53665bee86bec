// SPDX-License-Identifier: Apache-2.0
#include "runtime/generate.h"

#include <c10/core/InferenceMode.h>

#include "runtime/schedule.h"

namespace espalier {

std::vector<Result> generate(const LoadedModel& model, std::span<const Request> requests, const Callbacks& callbacks,
                             std::span<const RunExtras> extras, ImageCache* images) {
  const c10::InferenceMode no_gradients;
  const auto call = std::make_shared<Call>(callbacks);
  std::vector<std::unique_ptr<RequestRun>> runs;
  for (size_t i = 0; i < requests.size(); ++i)
    runs.push_back(
        std::make_unique<RequestRun>(model, requests[i], i, call, extras.empty() ? RunExtras() : extras[i]));
  std::vector<Result> results(requests.size());
  std::exception_ptr error;
  Schedule schedule(model, {.images = images, .on_done = [&](std::unique_ptr<RequestRun> run) {
                              if (run->result) {
                                results[run->index] = std::move(*run->result);
                              } else if (!error) {
                                error = run->error;
                                call->cancel();
                              }
                            }});
  for (auto& run : runs) schedule.admit(std::move(run));
  while (!schedule.is_idle()) schedule.step();
  if (error) std::rethrow_exception(error);
  return results;
}

Result generate(const LoadedModel& model, const Request& request, const Callbacks& callbacks,
                const RunExtras& extras) {
  return std::move(generate(model, std::span(&request, 1), callbacks, std::span(&extras, 1))[0]);
}

}  // namespace espalier
