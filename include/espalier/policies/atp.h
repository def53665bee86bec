// SPDX-License-Identifier: Apache-2.0
// ATP-LLaVA, Adaptive Token Pruning (arXiv 2412.00447): modules between decoder layers predict two thresholds from the
// attention that image tokens receive, and a token stays that passes either. Here: what modules consist of and the
// policy that applies them. Training them is training.h's.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "espalier/pruning.h"

namespace espalier {

enum class AtpNorm : uint8_t { kMinmax, kNone, kMax, kSigmoid, kRank };  // of the redundancy score, per crop
enum class AtpHeadInput : uint8_t { kScatter, kMean, kPool };            // what the head reads of the two scores
enum class AtpActivation : uint8_t { kNone, kRelu };                     // after the head's first layer
enum class AtpStrategy : uint8_t { kBoth, kRedundant, kSpatial };        // which score may keep a token
enum class AtpScores : uint8_t { kBoth, kSelf, kCross };  // attention that is looked at: from the crop, from text

// What modules are trained for, beside their weights.
struct AtpSettings {
  std::vector<int> layers =
      {};              // each module acts before this layer; empty: 4, 14, 24 of 32 in proportion to the depth
  GridSize grid = {};  // of a whole crop; {} takes any (modules with `scatter` know one)
  std::vector<int64_t> strides = {2, 4, 8};
  double lambda_sample = 3.0;
  AtpNorm norm = AtpNorm::kMinmax;
  AtpHeadInput head_input = AtpHeadInput::kScatter;
  AtpActivation activation = AtpActivation::kNone;
  int64_t min_keep = 1;  // of each crop
  AtpStrategy strategy = AtpStrategy::kBoth;
  AtpScores scores = AtpScores::kBoth;  // the one left out is replaced by the other, for score and head
  bool operator==(const AtpSettings&) const = default;
};

// The threshold head of one module, float32. h: its width; inputs: 2·rows·cols, 2 or 512 (AtpHeadInput).
struct AtpModule {
  at::Tensor mix_weight;         // [h, inputs]
  at::Tensor mix_bias;           // [h]
  at::Tensor redundancy_weight;  // [1, h]
  at::Tensor redundancy_bias;    // [1]
  at::Tensor spatial_weight;     // [1, h]
  at::Tensor spatial_bias;       // [1]
};

// Trained modules, one for each of settings.layers.
struct AtpWeights {
  std::string file;  // as option `weights` names it; empty: they come from no file
  AtpSettings settings;
  std::vector<AtpModule> modules;
};

struct AtpOptions {
  std::shared_ptr<const AtpWeights> weights = {};  // these, which then bring the settings; or
  std::vector<double> theta_r = {};                // constant thresholds, one for all layers or one for each
  std::vector<double> theta_s = {};
  AtpSettings settings = {};                 // with constant thresholds
  std::optional<AtpStrategy> strategy = {};  // unset: that of the settings
  double temperature = 10.0;                 // of soft_mask
  CommonOptions common = {};
};

PolicyPtr make_atp(const AtpOptions& options);

}  // namespace espalier
