// SPDX-License-Identifier: Apache-2.0
// CDPruner (arXiv 2506.10967): before the decoder each crop keeps the tokens that span the largest volume after each
// was scaled by its relevance to the question: a determinantal point process.
#pragma once

#include <cstdint>
#include <optional>

#include "espalier/policies/amount.h"
#include "espalier/pruning.h"

namespace espalier {

struct CdprunerOptions {
  // What a token's relevance is: CLIP's image and text embeddings; the projected token against the mean input embedding
  // of the query's text; nothing (all alike).
  enum class Relevance : uint8_t { kClip, kEmbedding, kNone };

  Amount amount = {};                       // of each crop
  std::optional<Relevance> relevance = {};  // by default kClip where there is a paired text tower, else kEmbedding
  std::optional<int> sign = {};             // 1 or -1; by default -1 for kClip, as released, else 1
  CommonOptions common = {};
};

PolicyPtr make_cdpruner(const CdprunerOptions& options);

}  // namespace espalier
