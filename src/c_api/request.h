// SPDX-License-Identifier: Apache-2.0
// The structs that requests come in, as those of generation.h.
#pragma once

#include "espalier/espalier.h"
#include "espalier/generation.h"

namespace espalier::c_api {

GenerationOptions generation_of(const espalier_generation_options* given);
Request request_of(const espalier_request& given);
Callbacks callbacks_of(const espalier_callbacks* given);

}  // namespace espalier::c_api
