// SPDX-License-Identifier: Apache-2.0
// What stands behind Engine, for the parts of Espalier that need the model itself.
#pragma once

#include "espalier/engine.h"
#include "runtime/loaded_model.h"

namespace espalier {

struct Engine::Impl {
  LoadedModel model;
};

}  // namespace espalier
