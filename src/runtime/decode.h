// SPDX-License-Identifier: Apache-2.0
// One new token for each of several sequences, over caches whose lengths differ by sequence and by layer.
#pragma once

#include <span>
#include <vector>

#include "runtime/kv_cache.h"
#include "runtime/loaded_model.h"
#include "runtime/sequence.h"

namespace espalier {

// Feeds token ids[i] to sequence active[i] and returns the logits behind them, [active, vocab]. Advances caches and
// positions.
at::Tensor decode_step(const LoadedModel& model, std::span<Sequence> sequences, const std::vector<size_t>& active,
                       const std::vector<int32_t>& ids, KvCache& cache);

}  // namespace espalier
