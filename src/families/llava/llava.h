// SPDX-License-Identifier: Apache-2.0
// LLaVA-1.5: one square crop of each picture through a CLIP tower, a two-layer projector, a Llama or Mistral decoder
// (arXiv 2310.03744).
#pragma once

#include "families/llava/config.h"
#include "families/model_config.h"

namespace espalier {

class Section;

ModelConfig read_llava(const Section& root);
ModelConfig describe(const LlavaConfig& config);

}  // namespace espalier
