// SPDX-License-Identifier: Apache-2.0
// Attention of the newest token over all that a layer's cache has in memory, held-back rows among it.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "model/config.h"
#include "runtime/kv_arena.h"

namespace espalier {

// query [1, h, d] of generated token number `generated`, 1, 2, …, whose key is the last row. -> float32
// [h, n + generated]: the prompt's n tokens as the layer saw them, then the generated ones; 0 where a KV head's row was
// freed. Without a sliding window.
at::Tensor generated_attention(const DecoderConfig& config, const KvArena& arena, const SequenceKv& kv, int layer,
                               int64_t generated, const at::Tensor& query);

}  // namespace espalier
