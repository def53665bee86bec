// SPDX-License-Identifier: Apache-2.0
// What stands behind Engine, for the parts of Espalier that need the model itself.
#pragma once

#include "espalier/engine.h"
#include "runtime/image_cache.h"
#include "runtime/loaded_model.h"
#include "runtime/shared_schedule.h"

namespace espalier {

struct Engine::Impl {
  // Loads on `thread`, on which everything of this engine is computed.
  Impl(std::unique_ptr<ComputeThread> thread, const std::filesystem::path& folder, const EngineOptions& options);

  std::unique_ptr<ComputeThread> compute;
  LoadedModel model;
  std::unique_ptr<ImageCache> images;        // none without bytes for it
  std::unique_ptr<SharedSchedule> schedule;  // of generate() from any thread, and of sessions
};

}  // namespace espalier
