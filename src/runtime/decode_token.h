// SPDX-License-Identifier: Apache-2.0
// One new token for each of several sequences through all decoder layers: what every way of decoding shares, whatever
// holds its keys and values.
#pragma once

#include "model/decoder.h"
#include "runtime/loaded_model.h"

namespace espalier {

// ids int64 [b] -> logits [b, vocab]. `rotary_of(layer)` gives the layer's rotation; `attend(layer, qkv)` puts key and
// value into the cache and returns what the query sees there, [b, h, d_h].
template <typename RotaryOf, typename Attend>
at::Tensor decode_token(const LoadedModel& model, const at::Tensor& ids, const RotaryOf& rotary_of,
                        const Attend& attend) {
  const DecoderConfig& config = model.config.decoder;
  const DecoderWeights& weights = model.weights.decoder;
  at::Tensor x = embed_tokens(weights, ids);
  for (int layer = 0; layer < config.num_layers; ++layer) {
    const DecoderLayerWeights& w = weights.layers[layer];
    const QueryKeyValue qkv = project_qkv(config, w, x, rotary_of(layer));
    x = add_mlp(config, w, add_attention(w, x, attend(layer, qkv)));
  }
  return logits(weights, final_norm(config, weights, x));
}

}  // namespace espalier
