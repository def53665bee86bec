// SPDX-License-Identifier: Apache-2.0
// The page of `espalier inspect`: each picture with the tokens kept and dropped at every point, their scores, budgets
// and position ids, for one prompt under one or more policies side by side. No libtorch type appears here.
#pragma once

#include <optional>
#include <span>
#include <string>

#include "espalier/engine.h"

namespace espalier {

// Runs the requests one after another and returns one HTML file that needs nothing else. They ask the same prompt and
// differ in their policies; Result::policy is what the page calls one. `answer`: the right one, to stand beside the
// others, where it is known. Nothing when a callback cancels. Throws Error where there is no request, for one that
// cannot be served, and for pictures that are not there (handles alone).
std::optional<std::string> inspect(const Engine& engine, std::span<const Request> requests,
                                   const Callbacks& callbacks = {}, const std::optional<std::string>& answer = {});

}  // namespace espalier
