// SPDX-License-Identifier: Apache-2.0
// Qwen2.5-VL: RMS norms, gated MLPs, and attention inside windows but for a few layers (arXiv 2502.13923).
#pragma once

#include "families/model_config.h"
#include "families/qwen_vl/config.h"

namespace espalier {

class Section;

ModelConfig read_qwen25_vl(const Section& root);
QwenVlConfig read_qwen25_vl_config(const Section& root);

}  // namespace espalier
