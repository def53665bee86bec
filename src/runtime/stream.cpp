// SPDX-License-Identifier: Apache-2.0
#include "runtime/stream.h"

#include <ATen/ops/cat.h>

#include "espalier/ops.h"

namespace espalier {

at::Tensor take_rows(const at::Tensor& x, const Applied& cut) {
  if (cut.unchanged) return x;
  const at::Tensor rows = cut.has_new_tokens ? at::cat({x, cut.new_vectors.to(x.scalar_type())}) : x;
  return ops::gather_rows(rows, cut.index);
}

void Stream::take(const Applied& cut) {
  if (cut.unchanged) return;
  hidden = take_rows(hidden, cut);
  for (at::Tensor& rider : riders)
    rider = ops::gather_rows(rider, cut.has_new_tokens ? cut.facts_from : cut.index);
}

void Stream::append(const Stream& behind) {
  hidden = at::cat({hidden, behind.hidden});
  for (size_t i = 0; i < riders.size(); ++i) riders[i] = at::cat({riders[i], behind.riders[i]});
}

}  // namespace espalier
