// SPDX-License-Identifier: Apache-2.0
#include "recording/recorded_answer.h"

#include <variant>

namespace espalier {

bool RecordedAnswer::step() {
  const std::span<const StepAgain> steps = walk_.again();
  if (steps.empty()) return false;
  for (;;) {
    for (; next_ < steps.size() && generated_ > 0; ++next_) {
      if (!steps[next_].is_due(generated_)) continue;
      walk_.act_again(next_, generated_, rows_.take(next_, steps[next_]));
      ++next_;
      return true;
    }
    if (generated_ == num_generated_) return false;
    ++generated_;
    next_ = 0;
    collect();
  }
}

void RecordedAnswer::collect() {
  const std::span<const StepAgain> steps = walk_.again();
  for (size_t i = 0; i < steps.size(); ++i)
    for (size_t j = 0; j < steps[i].needs.size(); ++j)
      if (GeneratedRows::is_wanted(steps[i], j, generated_))
        rows_.add(
            i, j,
            recorded_.generated_row(std::get<AttentionProbe>(steps[i].needs[j]).layer, steps[i].layout, generated_));
}

}  // namespace espalier
