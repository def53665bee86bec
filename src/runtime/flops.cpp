// SPDX-License-Identifier: Apache-2.0
#include "runtime/flops.h"

namespace espalier {

double layer_flops(const DecoderConfig& c, int64_t tokens) {
  const auto n = static_cast<double>(tokens), d = static_cast<double>(c.hidden_size),
             d_h = static_cast<double>(c.head_dim);
  const double projections = 2 * n * d * d_h * (2.0 * c.num_heads + 2.0 * c.num_kv_heads);  // q and o, k and v
  const double mlp = 2 * n * 3 * d * static_cast<double>(c.intermediate_size);
  const double attention = 4 * c.num_heads * d_h * n * (n + 1) / 2;
  return projections + mlp + attention;
}

double prefill_flops(const DecoderConfig& config, const std::vector<int64_t>& tokens_per_layer) {
  double flops = 0;
  for (const int64_t tokens : tokens_per_layer) flops += layer_flops(config, tokens);
  return flops;
}

}  // namespace espalier
