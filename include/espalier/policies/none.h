// SPDX-License-Identifier: Apache-2.0
// The policy that drops nothing: the unpruned model under a policy's name, for comparisons.
#pragma once

#include "espalier/pruning.h"

namespace espalier {

PolicyPtr make_none(const CommonOptions& common = {});

}  // namespace espalier
