// SPDX-License-Identifier: Apache-2.0
// What stands behind Engine, for the parts of Espalier that need the model itself.
#pragma once

#include "espalier/engine.h"
#include "runtime/image_cache.h"
#include "runtime/loaded_model.h"
#include "runtime/steady_decoder.h"

namespace espalier {

struct Engine::Impl {
  LoadedModel model;
  std::unique_ptr<ImageCache> images;      // none without bytes for it
  std::unique_ptr<IdleDecoders> decoders;  // where steps of decoding are recorded
};

}  // namespace espalier
