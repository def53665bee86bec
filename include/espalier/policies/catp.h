// SPDX-License-Identifier: Apache-2.0
// CATP, Contextually Adaptive Token Pruning for in-context learning (arXiv 2508.07871). Stage 1, before the decoder:
// each image keeps the tokens that cover it best and fit the text after it. Stage 2, in the decoder: images of the
// examples are cut before layer k by what the query sample asks of them, images of the query before layer k + 1 by what
// is left of the examples.
//
// CATP+ is CATP with other choices at the points where the published scores keep what is typical and drop what is asked
// about (docs/specs/catp_plus.md says why, docs/findings.md on what evidence). Each of them is an option of both.
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
  enum class Coverage : uint8_t { kFacility, kDpp };
  enum class Importance : uint8_t { kGrowth, kAttention, kOwnText };
  enum class QueryScore : uint8_t { kCosine, kAttention, kText, kBoth };
  enum class Rank : uint8_t { kPrevious, kNext };
  enum class QueryCut : uint8_t { kAfter, kTogether };
  enum class Selection : uint8_t { kTop, kDpp };
  enum class BudgetOf : uint8_t { kFinal, kMean };
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
  Coverage coverage = Coverage::kFacility;  // of stage 1; kDpp: a determinantal point process, which reads no text
  // What speaks for a context token, beside the cosine: growth of the last row's attention from layer k-2 to k-1; the
  // attention of the last row, or of the text after the token's image, in the layer that `rank` names.
  Importance importance = Importance::kGrowth;
  // What a token of the query is ranked by: cosine with the context; attention of the last row, of the text after its
  // image, or the larger of the two, each as a share of its maximum in the image.
  QueryScore query_score = QueryScore::kCosine;
  // Whose attention: of the layer before the cut, or of the one after it, which looks ahead. Unset: the layer before
  // the cut, but never layer 0 or 1, which look at neighbours.
  std::optional<Rank> rank = Rank::kPrevious;
  QueryCut query_cut = QueryCut::kAfter;  // before layer k + 1, or before k together with the context
  // The best scores, or greedily those that raise det L most, image by image: L_xy = r_x cos(h_x, h_y) r_y with
  // r = relevance_floor + score / largest score in the image.
  Selection selection = Selection::kTop;
  double relevance_floor = 0.5;
  BudgetOf budget = BudgetOf::kFinal;  // what `amount` says: how much stays at the end, or on the average over layers
  bool relu_per_head = false;          // attention growth clipped in each head, before the mean over heads
  DeltaNorm delta_norm = DeltaNorm::kNone;  // of growth (attention) over the context tokens
  StageTwoSimilarity similarity2 = StageTwoSimilarity::kCosine;
  Ranking ranking = Ranking::kGlobal;  // of the context: all examples together, or the same ratio each image
  Counts counts = Counts::kPerGroup;   // kExactTotal: the query gets what the context leaves of the rounded total
  Rounding rounding = Rounding::kFloor;
  bool row_breaks_compete = false;
  CommonOptions common = {};
};

// The defaults of `catp+`.
struct CatpPlusOptions : CatpOptions {
  CatpPlusOptions();
};

PolicyPtr make_catp(const CatpOptions& options);
PolicyPtr make_catp_plus(const CatpPlusOptions& options);

}  // namespace espalier
