// SPDX-License-Identifier: Apache-2.0
// What a request may take of the KV cache, known before anything runs: from its prompt, its answer's length and the
// budgets of its policy's steps.
#pragma once

#include <cstdint>

#include "layout/policy_walk.h"

namespace espalier {

// Rows of all layers together that the prompt leaves behind, at most. Steps whose budget the data decide, and those
// that add tokens beside it, count as if they dropped nothing.
int64_t most_prompt_rows(const PolicyWalk& walk, const PromptLayout& prompt, int num_layers);

}  // namespace espalier
