// SPDX-License-Identifier: Apache-2.0
// What stands behind Engine, for the parts of Espalier that need the model itself.
#pragma once

#include "espalier/engine.h"
#include "runtime/image_cache.h"
#include "runtime/loaded_model.h"
#include "runtime/schedule_thread.h"

namespace espalier {

struct Engine::Impl {
  Impl(LoadedModel loaded, const EngineOptions& options);

  LoadedModel model;
  std::unique_ptr<ImageCache> images;  // none without bytes for it
  std::unique_ptr<ScheduleThread> thread;  // what generate() of any thread, and sessions, run on
};

}  // namespace espalier
