// SPDX-License-Identifier: Apache-2.0
// A point of a replay result, as `replay` writes it and `generate --json` repeats it.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "espalier/generation.h"

namespace espalier {

nlohmann::ordered_json to_json(const PointTrace& point);

}  // namespace espalier
