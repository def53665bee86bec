// SPDX-License-Identifier: Apache-2.0
// The options that say how an answer is drawn, shared by commands that answer.
#pragma once

#include "espalier/generation.h"

namespace CLI {
class App;
}

namespace espalier::cli {

void add_sampling_options(CLI::App& app, GenerationOptions& options);

}  // namespace espalier::cli
