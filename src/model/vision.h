// SPDX-License-Identifier: Apache-2.0
// What is common to vision towers of any kind: the facts that signals and policies need, what one layer leaves for
// them, and what a tower gives to the projector.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>

namespace espalier {

struct VisionFacts {
  int num_layers = 0;
  int feature_layers = 0;  // layers that have to run for the features
  int num_heads = 0;
  int64_t hidden_size = 0;
  bool has_class_token = false;   // row 0 of each crop
  int64_t patches_per_token = 1;  // the tower merges so many neighbours, their features behind each other
  int64_t crop_size = 0;          // side of a crop in pixels; 0: pictures keep their proportions

  int64_t head_dim() const { return hidden_size / num_heads; }
};

// What one vision layer computed, for class-attention probes and recordings. p1 = patches + 1 where there is a class
// token (row 0 of each crop), else patches.
struct VisionLayerTrace {
  int layer = 0;
  at::Tensor query, key;  // [crops·p1, h, d_h]
  at::Tensor lse;         // float32 [h, crops·p1]
  at::Tensor output;      // [crops, p1, d]
};
using VisionObserver = std::function<void(const VisionLayerTrace&)>;

struct VisionFeatures {
  at::Tensor patches;       // [..., d_v] what the projector reads, crop by crop
  at::Tensor classes = {};  // [crops, d_v] the class rows that go with them; undefined where there are none
};

}  // namespace espalier
