// SPDX-License-Identifier: Apache-2.0
// How a queue divides its time: what the request whose turn it is may take, so that those behind it come in time, too.
#pragma once

#include <optional>
#include <span>

namespace espalier {

struct Waiting {
  std::optional<double> left_ms = {};  // until it should have its first token; none: it does not matter
  double least_ms = 0;                 // what it takes at the quickest
};

// Milliseconds for queue.front(): the largest equal share with which nobody is late. Who will be late at the quickest
// holds nobody up; the first in the queue gets what is left to it, which may be below 0, and infinity where nobody has
// a time to keep.
//
// It does not swing: while requests come every P ms, the first one's wait grows by (left - P) / (number waiting) from
// one to the next, so it nears the one wait at which each takes P from one side and never steps over it.
double time_share(std::span<const Waiting> queue);

}  // namespace espalier
