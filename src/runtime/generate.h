// SPDX-License-Identifier: Apache-2.0
// A batch of requests from prompt to result, and the first half of that on its own for recordings.
#pragma once

#include <span>
#include <vector>

#include "espalier/generation.h"
#include "runtime/encode.h"
#include "runtime/loaded_model.h"
#include "runtime/prefill.h"
#include "runtime/sequence.h"

namespace espalier {

class IdleDecoders;

// Hooks that recordings and dumps hang into a run; normal requests leave them empty.
struct RunHooks {
  EncodeHooks encode;    // its cancel and progress members come from Callbacks
  PrefillHooks prefill;  // likewise
  // Where given, these decode, in buffers that stay for the answers to come; else decode_step() does.
  IdleDecoders* decoders = nullptr;
};

PolicyPtr policy_of(const Request& request);

std::vector<Result> generate_batch(const LoadedModel& model, std::span<const Request> requests,
                                   const Callbacks& callbacks, RunHooks hooks = {});

}  // namespace espalier
