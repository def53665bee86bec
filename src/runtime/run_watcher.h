// SPDX-License-Identifier: Apache-2.0
// Looks over the shoulder of one request's run: recordings, dumps, fits, comparisons. Everything is left out by
// default, and what nobody watches costs nothing.
#pragma once

#include <ATen/core/Tensor.h>

#include "espalier/token_layout.h"
#include "families/image_plan.h"
#include "model/vision.h"

namespace espalier {

// What one decoder layer saw of the sequence.
struct LayerView {
  int layer;
  const TokenLayout& layout;  // of the tokens that entered
  at::Tensor hidden;          // [n, d] entering the layer
  at::Tensor query, key, lse;
};

class RunWatcher {
 public:
  virtual ~RunWatcher() = default;

  // True: every layer of the tower runs, for every picture, and on_vision_layer() is called.
  virtual bool watches_vision() const { return false; }
  virtual void on_vision_layer(size_t image, const ImagePlan& plan, const VisionLayerTrace& trace) {}
  // True: pictures are prepared even where their features are known.
  virtual bool watches_pixels() const { return false; }
  virtual void on_pixels(const at::Tensor& pixels) {}  // of each image, as the front end makes them
  // The tower's output in the order of the sequence.
  virtual void on_vision_output(const at::Tensor& features, const at::Tensor& classes) {}
  // [image tokens, d] as they enter the sequence, row breaks among them.
  virtual void on_image_tokens(const at::Tensor& image_tokens) {}
  // The decoder's input embedding, before a policy acts at projector_output.
  virtual void on_embedded(const TokenLayout& layout, const at::Tensor& hidden) {}

  // True: all rows go through all layers, and on_layer() and on_output() are called.
  virtual bool watches_layers() const { return false; }
  virtual void on_layer(const LayerView& view) {}
  // After the last layer: the residual stream, before the final norm.
  virtual void on_output(const TokenLayout& layout, const at::Tensor& hidden) {}
  // The residual stream that reaches a layer, before a policy acts there.
  virtual void on_state(int layer, const TokenLayout& layout, const at::Tensor& hidden) {}
  // A layer that a policy looked at before it ran (no lse): its own on_layer() comes behind what the policy then
  // dropped.
  virtual void on_look_ahead(const LayerView& view) {}
  // True: on_generated() is called. Not of a model with a sliding window.
  virtual bool watches_generated() const { return false; }
  // Of each layer with each generated token whose row is in the cache, 1, 2, …: float32
  // [h, n + generated], what it would give to all rows that the layer has in memory: prompt tokens as the layer saw
  // them, then generated ones. 0 where a KV head's row is freed.
  virtual void on_generated(int layer, int64_t generated, const at::Tensor& attention) {}
  virtual void on_logits(const at::Tensor& row) {}  // [vocab] of the prompt's last token
};

// Keeps the logits behind the prompt, float32 [vocab] on the CPU.
struct LogitsWatcher final : RunWatcher {
  void on_logits(const at::Tensor& row) override { logits = row.to(at::kCPU, at::kFloat).contiguous(); }
  at::Tensor logits;
};

}  // namespace espalier
