// SPDX-License-Identifier: Apache-2.0
#include "jinja/budget.h"

#include "base/error_text.h"
#include "jinja/operations.h"

namespace espalier::jinja {

void Budget::refuse() {
  raise(text_of("the template takes more than ", limits::kTemplateSteps, " steps"));
}

void check_text(size_t bytes) {
  if (bytes > limits::kTemplateText) raise(text_of("a text of more than ", limits::kTemplateText, " bytes"));
}

void check_items(size_t count) {
  if (count > limits::kTemplateItems) raise(text_of("a list of more than ", limits::kTemplateItems, " items"));
}

}  // namespace espalier::jinja
