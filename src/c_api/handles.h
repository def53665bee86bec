// SPDX-License-Identifier: Apache-2.0
// What stands behind the handles of espalier.h that more than one file knows.
#pragma once

#include <memory>
#include <string>

#include "espalier/engine.h"
#include "espalier/espalier.h"
#include "espalier/generation.h"
#include "espalier/image.h"
#include "espalier/prompt.h"

struct espalier_image {
  std::shared_ptr<const espalier::Image> image;
};

struct espalier_prompt {
  espalier::Prompt prompt;
};

// Shared with schedulers and sessions, which may be freed later.
struct espalier_engine {
  std::shared_ptr<const espalier::Engine> engine;
};

struct espalier_policy {
  std::shared_ptr<const espalier::PruningPolicy> policy;
  std::string spec;
};

struct espalier_result {
  std::shared_ptr<const espalier::Result> result;
};
