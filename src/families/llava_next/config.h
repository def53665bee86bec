// SPDX-License-Identifier: Apache-2.0
// config.json of LLaVA-NeXT: LLaVA's, and the canvases of its tiles.
#pragma once

#include <cstdint>
#include <vector>

#include "families/llava/config.h"

namespace espalier {

struct Pinpoint {  // pixels that the tiles of an any-resolution picture can fill together
  int64_t height = 0;
  int64_t width = 0;
  bool operator==(const Pinpoint&) const = default;
};

struct LlavaNextConfig {
  LlavaConfig llava;
  std::vector<Pinpoint> grid_pinpoints = {};
};

LlavaNextConfig read_llava_next_config(const Section& root);

}  // namespace espalier
