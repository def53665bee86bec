// SPDX-License-Identifier: Apache-2.0
// Layouts as the plain structs of trace.h.
#pragma once

#include "espalier/token_layout.h"
#include "espalier/trace.h"

namespace espalier {

PromptTrace trace_of(const PromptLayout& layout);

// [n] or [3, n] on any device -> [1 or 3][n].
std::vector<std::vector<int64_t>> position_ids(const at::Tensor& position_id);

}  // namespace espalier
