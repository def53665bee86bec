// SPDX-License-Identifier: Apache-2.0
// The page of `espalier inspect`: one HTML file that needs nothing else, from the traces of one prompt under one or
// more policies. The page itself is page.html beside this file; what is written into it is JSON:
//   model, version, prompt; query_example; answer, where the right one is known;
//   pictures: [{uri (PNG), example}];
//   layouts: [{kind, image, crop, row, column, box (pixels of the picture; null for text), position_id [1 or 3][n]}],
//   one entry per token before pruning (a policy that resizes pictures has a layout of its own); runs: [{policy,
//   layout, text, kept, points (as in a replay result), stats}].
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "espalier/generation.h"
#include "espalier/prompt.h"
#include "espalier/trace.h"

namespace espalier {

struct InspectedRun {
  std::string policy;  // as it ran, with what the model set
  PromptTrace prompt;
  std::vector<PointTrace> points;
  Result result;
};

struct InspectedPrompt {
  std::string model;
  std::string version;
  std::vector<ImagePart> images;
  std::optional<std::string> answer;  // the right one, where it is known
};

// `runs` is not empty. Throws Error when a picture cannot be encoded or its tokens have no place on it.
std::string inspect_page(const InspectedPrompt& prompt, std::span<const InspectedRun> runs);

}  // namespace espalier
