// SPDX-License-Identifier: Apache-2.0
#include "espalier/policies/none.h"

#include "pruning/built_in.h"

namespace espalier {

namespace {

struct NoneOptions {
  CommonOptions common = {};
};

const Method<NoneOptions>& method() {
  static const Method<NoneOptions> method = {
      .name = "none", .options = {}, .steps = [](const NoneOptions&, const ModelFacts&, const PromptLayout&) {
        return std::vector<Step>();
      }};
  return method;
}

}  // namespace

PolicyPtr make_none(const CommonOptions& common) {
  return make(method(), NoneOptions{common});
}

PolicyRow none_row() {
  return row(method(), {.paper = "-",
                        .summary = "nothing is dropped",
                        .needs = "nothing",
                        .refusal = any_model,
                        .examples = {{"none"}}});
}

}  // namespace espalier
