// SPDX-License-Identifier: Apache-2.0
// LLaVA-NeXT (LLaVA-1.6): LLaVA with pictures of any resolution. A full view and the tiles of a canvas, stitched row by
// row, with a learned vector behind each row.
#pragma once

#include "families/model_config.h"

namespace espalier {

class Section;

ModelConfig read_llava_next(const Section& root);

}  // namespace espalier
