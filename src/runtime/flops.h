// SPDX-License-Identifier: Apache-2.0
// Floating-point operations of the decoder layers, a multiply-add counted as two, attention counted causally (half of
// the square). Embedding, norms, head and vision tower are left out.
#pragma once

#include <cstdint>
#include <vector>

#include "model/config.h"

namespace espalier {

double layer_flops(const DecoderConfig& config, int64_t tokens);
double prefill_flops(const DecoderConfig& config, const std::vector<int64_t>& tokens_per_layer);

}  // namespace espalier
