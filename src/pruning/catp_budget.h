// SPDX-License-Identifier: Apache-2.0
// How many tokens each step of CATP keeps (docs/specs/catp.md, section 4; budget=mean: docs/specs/catp_plus.md,
// section 2): integers on the host, from the unpruned request alone.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "espalier/policies/catp.h"

namespace espalier {

// Where stage 2 cuts, which budget=mean counts with.
struct CatpDepth {
  int k = 0, num_layers = 0;
};

struct CatpBudget {
  std::vector<int64_t> stage1;          // [images] left by stage 1
  std::vector<int64_t> context_images;  // ordinals: images of examples other than the query's
  std::vector<int64_t> query_images;    // images of the query example
  // [images] left by the step that judges the image, where that counts image by image: the context's under
  // ranking=per_image, the query's where judges_query_by_image().
  std::vector<int64_t> per_image;
  int64_t context = 0;  // left by the context step, all examples together
  int64_t query = 0;    // left by the query step
  bool prunes_stage1 = false, prunes_context = false;
  // query_score=cosine compares the query with the context, without an image there with its text; without that too,
  // there is nothing to compare with.
  bool can_rank_query = false;

  int64_t after_stage1(const std::vector<int64_t>& images) const;
};

// Whether each picture of the query has a share of its own: where tokens are chosen image by image, or where one step
// counts the images of query and examples.
bool judges_query_by_image(const CatpOptions& options);

// Each non-empty group keeps at least one token. Throws Error, in the name of `policy`, when pinned tokens do not fit
// or the mean cannot be reached.
CatpBudget catp_budget(const CatpOptions& options, const PromptLayout& prompt, CatpDepth depth = {},
                       std::string_view policy = "catp");

}  // namespace espalier
