// SPDX-License-Identifier: Apache-2.0
// How many tokens each step of CATP keeps (docs/specs/catp.md, section 4): integers on the host, from the unpruned
// request alone.
#pragma once

#include <cstdint>
#include <vector>

#include "espalier/policies/catp.h"

namespace espalier {

struct CatpBudget {
  std::vector<int64_t> stage1;             // [images] left by stage 1
  std::vector<int64_t> context_images;     // ordinals: images of examples other than the query's
  std::vector<int64_t> query_images;       // images of the query example
  std::vector<int64_t> context_per_image;  // [images] left by the context step under ranking=per_image, else empty
  int64_t context = 0;                     // left by the context step, all examples together
  int64_t query = 0;                       // left by the query step
  bool prunes_stage1 = false, prunes_context = false;
  // Without an image in the context the query is compared with text; without that too, there is nothing to compare
  // with.
  bool can_compare_query = false;

  int64_t after_stage1(const std::vector<int64_t>& images) const;
};

// Each non-empty group keeps at least one token. Throws Error when pinned tokens do not fit.
CatpBudget catp_budget(const CatpOptions& options, const PromptLayout& prompt);

}  // namespace espalier
