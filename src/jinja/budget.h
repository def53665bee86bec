// SPDX-License-Identifier: Apache-2.0
// What one rendering of a chat template may cost. Every construct that walks, copies or compares asks for its share
// before it begins, so that neither time nor memory depends on what the template's author had in mind.
#pragma once

#include <cstddef>
#include <string_view>

#include "base/limits.h"
#include "jinja/value.h"

namespace espalier::jinja {

class Budget {
 public:
  void spend(size_t steps) {  // throws std::invalid_argument when there are no more
    if (steps > left_) refuse();
    left_ -= steps;
  }
  void spend_text(size_t bytes) { spend(1 + bytes / 64); }
  // To copy or compare a value itself; what a list or dict holds is shared and not counted.
  void spend(const Value& value) { spend_text(value.string() ? value.string()->size() : 0); }
  void spend_items(const List& items) {
    for (const Value& item : items) spend(item);
  }

 private:
  [[noreturn]] static void refuse();

  size_t left_ = limits::kTemplateSteps;
};

// Throw std::invalid_argument for a text or list over its limit; to be asked before it is made.
void check_text(size_t bytes);
void check_items(size_t count);

}  // namespace espalier::jinja
