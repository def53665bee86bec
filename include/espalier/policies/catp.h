// SPDX-License-Identifier: Apache-2.0
// CATP, Contextually Adaptive Token Pruning for in-context learning (arXiv 2508.07871). Stage 1, before the decoder:
// each image keeps the tokens that cover it best and fit the text behind it. Stage 2, in the decoder: images of the
// examples are cut before layer k by what the query sample asks of them, images of the query before layer k + 1 by what
// is left of the examples.
#pragma once

#include <cstdint>
#include <optional>

#include "espalier/ops.h"
#include "espalier/policies/amount.h"
#include "espalier/pruning.h"

namespace espalier {

struct CatpOptions {
  enum class Scale : uint8_t { kNone, kDivMean };
  enum class QueryPool : uint8_t { kAll, kText, kLast };
  enum class ContextPool : uint8_t { kAll, kImage };
  enum class Importance : uint8_t { kGrowth, kAttention };
  enum class DeltaNorm : uint8_t { kNone, kMax, kSum, kMinmax };
  enum class StageTwoSimilarity : uint8_t { kCosine, kAffine };
  enum class Ranking : uint8_t { kGlobal, kPerImage };
  enum class Counts : uint8_t { kPerGroup, kExactTotal };

  Amount amount = {};  // of all image tokens; the paper's R is 1 - keep_ratio
  // The paper's K, 2 to depth - 2; by default 10 from 40 layers on, 6 from 16 on, else about 3/16 of them.
  std::optional<int> k = {};
  double lambda1 = 0.7;            // weight of the alignment with the image's text, in stage 1
  double lambda2 = 0.6;            // weight of the cosine with the query sample, in stage 2
  Fraction stage1_share = {1, 2};  // of what is removed; 1: stage 1 alone, 0: stage 2 alone
  ops::Similarity similarity = ops::Similarity::kAffine;
  Scale scale = Scale::kNone;              // kDivMean: coverage is divided by the image's number of tokens
  QueryPool query_pool = QueryPool::kAll;  // tokens of the query sample whose mean state the context is compared with
  ContextPool context_pool = ContextPool::kAll;
  // What the query's last row says of context tokens: growth of its attention from layer k-2 to k-1, or, as the
  // ablation that growth is measured against, its attention in layer k-1.
  Importance importance = Importance::kGrowth;
  bool relu_per_head = false;               // attention growth clipped in each head, before the mean over heads
  DeltaNorm delta_norm = DeltaNorm::kNone;  // of growth (attention) over the context tokens
  StageTwoSimilarity similarity2 = StageTwoSimilarity::kCosine;
  Ranking ranking = Ranking::kGlobal;  // of the context: all examples together, or the same ratio each image
  Counts counts = Counts::kPerGroup;   // kExactTotal: the query gets what the context leaves of the rounded total
  Rounding rounding = Rounding::kFloor;
  bool row_breaks_compete = false;
  CommonOptions common = {};
};

PolicyPtr make_catp(const CatpOptions& options);

}  // namespace espalier
