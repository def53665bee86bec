// SPDX-License-Identifier: Apache-2.0
// What steps that are asked again while decoding decide on recorded attention, in the order of a live run.
#pragma once

#include <cstdint>

#include "layout/generated_rows.h"
#include "layout/policy_walk.h"
#include "recording/recorded_signals.h"

namespace espalier {

class RecordedAnswer {
 public:
  // Of a walk that prefill has ended; both live longer. `num_generated`: tokens of the answer that were recorded.
  RecordedAnswer(PolicyWalk& walk, const RecordedSignals& recorded, int64_t num_generated)
      : walk_(walk), recorded_(recorded), num_generated_(num_generated) {}

  // The next verdict; false when there is none left.
  bool step();

 private:
  void collect();

  PolicyWalk& walk_;
  const RecordedSignals& recorded_;
  int64_t num_generated_, generated_ = 0;
  size_t next_ = 0;  // of the steps, with this token
  GeneratedRows rows_;
};

}  // namespace espalier
