// SPDX-License-Identifier: Apache-2.0
// Qwen2-VL: layer norms, plain MLPs, and attention over the whole picture in every layer (arXiv 2409.12191).
#pragma once

#include "families/model_config.h"
#include "families/qwen_vl/config.h"

namespace espalier {

class Section;

ModelConfig read_qwen2_vl(const Section& root);
QwenVlConfig read_qwen2_vl_config(const Section& root);

}  // namespace espalier
