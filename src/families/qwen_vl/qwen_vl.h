// SPDX-License-Identifier: Apache-2.0
// What Qwen2-VL and Qwen2.5-VL share: pictures of any size through a vision transformer that merges cells of patches,
// the merger's MLP as projector, a Qwen2 decoder with M-RoPE (arXiv 2409.12191, 2502.13923).
#pragma once

#include "families/model_config.h"
#include "families/qwen_vl/config.h"

namespace espalier {

ModelConfig describe(const QwenVlConfig& config);

}  // namespace espalier
