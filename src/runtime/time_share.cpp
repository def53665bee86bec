// SPDX-License-Identifier: Apache-2.0
#include "runtime/time_share.h"

#include <algorithm>
#include <limits>

namespace espalier {

double time_share(std::span<const Waiting> queue) {
  double share = std::numeric_limits<double>::infinity(), least = 0;
  for (size_t i = 0; i < queue.size(); ++i) {
    least += queue[i].least_ms;
    if (!queue[i].left_ms || (i > 0 && least > *queue[i].left_ms)) continue;
    share = std::min(share, *queue[i].left_ms / static_cast<double>(i + 1));
  }
  return share;
}

}  // namespace espalier
