// SPDX-License-Identifier: Apache-2.0
// Stage 2 of CATP, in the decoder: docs/specs/catp.md, section 3, and the other choices of docs/specs/catp_plus.md.
#pragma once

#include <memory>
#include <vector>

#include "espalier/policies/catp.h"
#include "pruning/catp_budget.h"

namespace espalier {

// Images of the examples are cut before layer k, those of the query before layer k + 1 or with them. An image outside
// every example is not judged.
std::vector<Step> catp_stage2(const CatpOptions& options, int k, const std::shared_ptr<const CatpBudget>& budget);

}  // namespace espalier
