// SPDX-License-Identifier: Apache-2.0
// The statistics of a run for a person: what `generate --stats` prints.
#pragma once

#include <string>

#include "espalier/generation.h"

namespace espalier::cli {

std::string stats_text(const Stats& stats);  // several lines

}  // namespace espalier::cli
