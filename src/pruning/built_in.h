// SPDX-License-Identifier: Apache-2.0
// The built-in policies from their spec strings: one function each, at the end of the policy's file. policies.cpp lists
// them.
#pragma once

#include "pruning/planned_policy.h"
#include "pruning/policy_spec.h"

namespace espalier {

PlannedPolicyPtr none_from(const OptionReader& reader);
PlannedPolicyPtr random_from(const OptionReader& reader);
PlannedPolicyPtr uniform_from(const OptionReader& reader);
PlannedPolicyPtr vtw_from(const OptionReader& reader);
PlannedPolicyPtr fastv_from(const OptionReader& reader);
PlannedPolicyPtr catp_from(const OptionReader& reader);
PlannedPolicyPtr divprune_from(const OptionReader& reader);
PlannedPolicyPtr cdpruner_from(const OptionReader& reader);
PlannedPolicyPtr m3_from(const OptionReader& reader);
PlannedPolicyPtr hired_from(const OptionReader& reader);
PlannedPolicyPtr attention_from(const OptionReader& reader);
PlannedPolicyPtr pyramiddrop_from(const OptionReader& reader);
PlannedPolicyPtr dart_from(const OptionReader& reader);
PlannedPolicyPtr plphp_from(const OptionReader& reader);
PlannedPolicyPtr sparsevlm_from(const OptionReader& reader);
PlannedPolicyPtr fitprune_from(const OptionReader& reader);
PlannedPolicyPtr keepmask_from(const OptionReader& reader);
PlannedPolicyPtr atp_from(const OptionReader& reader);
PlannedPolicyPtr prumerge_from(const OptionReader& reader);
PlannedPolicyPtr prumerge_plus_from(const OptionReader& reader);
PlannedPolicyPtr visionzip_from(const OptionReader& reader);
PlannedPolicyPtr resize_from(const OptionReader& reader);

}  // namespace espalier
