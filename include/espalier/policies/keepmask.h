// SPDX-License-Identifier: Apache-2.0
// Kept sets made elsewhere, in the form of a replay result: which image tokens are alive behind which point. The policy
// applies them; it judges nothing.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "espalier/pruning.h"

namespace espalier {

struct KeptPoint {
  ActPoint point;
  std::vector<int64_t> kept;                        // source indices of all image tokens alive behind it, ascending
  std::vector<std::vector<int64_t>> kept_per_head;  // at the cache, in place of `kept`: one list a KV head
};

struct KeptSets {
  std::string file;  // as option `file` names it
  std::vector<KeptPoint> points;
};

struct KeepmaskOptions {
  KeptSets sets = {};
  bool row_breaks_compete = false;  // true: the sets list row breaks too
  CommonOptions common = {};
};

PolicyPtr make_keepmask(const KeepmaskOptions& options);

}  // namespace espalier
