// SPDX-License-Identifier: Apache-2.0
#include "runtime/stream.h"

#include <ATen/ops/cat.h>

#include "espalier/ops.h"

namespace espalier {

void Stream::take(const Applied& cut) {
  if (cut.unchanged) return;
  const at::Tensor rows = cut.has_new_tokens ? at::cat({hidden, cut.new_vectors.to(hidden.scalar_type())}) : hidden;
  hidden = ops::gather_rows(rows, cut.index);
  for (at::Tensor& rider : riders) rider = ops::gather_rows(rider, cut.has_new_tokens ? cut.facts_from : cut.index);
}

void Stream::append(const Stream& behind) {
  hidden = at::cat({hidden, behind.hidden});
  for (size_t i = 0; i < riders.size(); ++i) riders[i] = at::cat({riders[i], behind.riders[i]});
}

}  // namespace espalier
