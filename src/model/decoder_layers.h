// SPDX-License-Identifier: Apache-2.0
// The one loop over decoder layers. Prefill, decoding, recorded steps and training are all calls of it: they differ in
// where keys and values are kept and in what happens between the parts of a layer, and say so by `Steps`.
#pragma once

#include <concepts>

#include "model/decoder.h"

namespace espalier {

// Packed rows on their way through the layers.
struct LayerRows {
  at::Tensor hidden;  // [n, d]
  Rotary rotary;      // of these rows, at the layer they enter
};

// attend() puts keys and values where they belong and returns what the rows see, [n, h, d_h]. Each of the three may
// take rows out of `rows`, which then go no further; attend() returns as many as it left.
template <typename T>
concept LayerSteps = requires(T steps, int layer, const QueryKeyValue& qkv, LayerRows& rows) {
  steps.before_layer(layer, rows);
  { steps.attend(layer, qkv, rows) } -> std::convertible_to<at::Tensor>;
  steps.after_attention(layer, rows);
};

// Layers `from` to `to` - 1.
template <LayerSteps Steps>
void run_layers(const DecoderConfig& config, const DecoderWeights& weights, int from, int to, LayerRows& rows,
                Steps& steps) {
  for (int layer = from; layer < to; ++layer) {
    const DecoderLayerWeights& w = weights.layers[static_cast<size_t>(layer)];
    steps.before_layer(layer, rows);
    const at::Tensor attended = steps.attend(layer, project_qkv(config, w, rows.hidden, rows.rotary), rows);
    rows.hidden = add_attention(w, rows.hidden, attended);
    steps.after_attention(layer, rows);
    rows.hidden = add_mlp(config, w, rows.hidden);
  }
}

}  // namespace espalier
