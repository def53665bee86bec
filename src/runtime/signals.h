// SPDX-License-Identifier: Apache-2.0
// Turns what a policy asks for into the by-products of the pass that is running. Only computes what is asked; the rules
// of what may be asked are in policy_walk.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <initializer_list>
#include <map>
#include <vector>

#include "espalier/pruning.h"
#include "model/config.h"
#include "model/vision.h"
#include "runtime/sequence.h"

namespace espalier {

// Where rows, columns or sequences begin, or how many there are, as the ops take them: int64 in the host's memory.
at::Tensor offsets(std::initializer_list<int64_t> values);

// Decoder layers whose queries, keys and log-sum-exp a signal reads.
std::vector<int> layers_read(const Signal& signal);
// Vision layers whose traces a signal reads.
std::vector<int> vision_layers_read(const Signal& signal);

// What there is at a point inside or before the decoder.
struct SignalSource {
  const DecoderConfig& config;
  const TokenLayout& layout;
  at::Tensor hidden;  // [n, d] at the point
  const std::map<int, ops::AttendedLayer>& traces;
  std::function<ops::AttendedLayer(int layer)>
      look_ahead;  // queries of the last row and keys of a layer that has not run
  std::function<at::Tensor(const at::Tensor&)> final_norm;
};
at::Tensor compute_signal(const Signal& signal, const SignalSource& source);

// What the tower leaves of one request's images, collected crop by crop.
struct VisionSignalSource {
  const VisionFacts& facts;
  std::map<int, std::vector<VisionLayerTrace>> traces;  // by vision layer, images in order
  at::Tensor features;                                  // [m, d_v]
  at::Tensor classes;                                   // [c, d_v]
  at::Tensor tower_row;                                 // families/image_plan.h, of all images; may be undefined
};
// Values of the tower's rows along `dimension` as the patches follow each other in the sequence.
at::Tensor in_sequence_order(const at::Tensor& values, int64_t dimension, const at::Tensor& tower_row);
bool is_vision_signal(const Signal& signal);
at::Tensor compute_signal(const Signal& signal, const VisionSignalSource& source);
// Keys of one layer, heads concatenated, a row for each of the tower's rows without class rows: [rows, d_v]. A merged
// token has the keys of its patches behind each other, [rows, patches_per_token·d_v].
at::Tensor vision_keys(const VisionFacts& facts, const VisionLayerTrace& trace);

// Multiply-adds times two that a signal costs beyond the plain pass: of the decoder, without the look-ahead itself; of
// a look at a layer that has not run yet; of the tower.
double signal_flops(const Signal& signal, const DecoderConfig& config, const TokenLayout& layout);
double look_ahead_flops(const Signal& signal, const DecoderConfig& config, const TokenLayout& layout);
double signal_flops(const Signal& signal, const VisionSignalSource& source);

}  // namespace espalier
