// SPDX-License-Identifier: Apache-2.0
// From what the user asks to one row of token ids and its layout: template, tokenizer, placeholders expanded to image
// tokens, examples marked.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "espalier/prompt.h"
#include "espalier/token_layout.h"
#include "families/image_plan.h"
#include "runtime/loaded_model.h"

namespace espalier {

struct PackedPrompt {
  std::string text;          // before expansion
  std::vector<int32_t> ids;  // after
  std::vector<ImagePart> images;
  std::vector<ImagePlan> plans;  // of the images
  int64_t next_position = 0;     // of the first generated token, with positions kept
  std::shared_ptr<const PromptLayout> layout;
};

// Pictures take the shape that the policy wants. Throws Error when placeholders and images do not match, or the prompt
// with `new_tokens` after it passes the position limit; nullopt: it is not to run, and may pass it.
PackedPrompt pack_prompt(const LoadedModel& model, const Prompt& prompt, std::optional<int64_t> new_tokens,
                         const PruningPolicy* policy = nullptr);

}  // namespace espalier
