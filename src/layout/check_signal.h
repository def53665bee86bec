// SPDX-License-Identifier: Apache-2.0
// Whether a signal can be read where a step asks for it.
#pragma once

#include "espalier/pruning.h"

namespace espalier {

// Throws Error naming policy and signal when the model lacks what is asked for or the point comes too early for it. No
// decoder layer before `first_readable_layer` can be read any more; -1: the vision tower, too, is still there.
void check_signal(const Signal& signal, const Step& step, const ModelFacts& model, int first_readable_layer);

}  // namespace espalier
