// SPDX-License-Identifier: Apache-2.0
// Requests from prompt to result on the calling thread, with a schedule of their own.
#pragma once

#include <span>
#include <vector>

#include "espalier/generation.h"
#include "runtime/loaded_model.h"
#include "runtime/request_run.h"

namespace espalier {

class ImageCache;

// `extras`: of each request, or none. Throws what the first of them to fail throws; the others are then given up.
std::vector<Result> generate(const LoadedModel& model, std::span<const Request> requests,
                             const Callbacks& callbacks = {}, std::span<const RunExtras> extras = {},
                             ImageCache* images = nullptr);
Result generate(const LoadedModel& model, const Request& request, const Callbacks& callbacks = {},
                const RunExtras& extras = {});

}  // namespace espalier
