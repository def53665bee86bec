// SPDX-License-Identifier: Apache-2.0
// Persistence: the caches keep the image tokens that layers and generated tokens have referred to again and again. A
// method of this library (docs/specs/persistence.md). Prefill is not shortened; decoding and memory are.
#pragma once

#include "espalier/policies/amount.h"
#include "espalier/pruning.h"

namespace espalier {

struct PersistenceOptions {
  Amount amount = {};  // in each cache, a ratio of the request's image tokens
  int layer = 2;       // caches of the layers before it stay whole and are not read; from 0 on
  int every = 4;       // generated tokens from choice to choice, at least 1
  double decay = 1;    // what is left of a vote from ask to ask, in [0, 1]; 1: nothing is forgotten
  // True: what leaves stays in memory and may return. False: it is freed, and the answer's tokens take its place: the
  // amount is of both together, and no cache grows while image tokens may leave.
  bool revives = false;
  bool row_breaks_compete = true;
  CommonOptions common = {};
};

PolicyPtr make_persistence(const PersistenceOptions& options);

}  // namespace espalier
