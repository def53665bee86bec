// SPDX-License-Identifier: Apache-2.0
// Which text of a request speaks of its images. Text is never dropped, so a text token keeps its ordinal among the text
// tokens from the first point to the last: the host names ordinals, the device finds them in the current sequence.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "espalier/pruning.h"
#include "espalier/token_layout.h"

namespace espalier {

// Ordinals among the request's text tokens from source index `begin` on (TokenLayout::begin), ascending. What stands
// before it belongs to a cached prefix and is left out.
// For each image: text behind it, before the next image, of the same example.
std::vector<std::vector<int64_t>> text_of_each_image(const PromptLayout& prompt, int64_t begin = 0);
// For each image: all text behind it, of whatever example.
std::vector<std::vector<int64_t>> text_behind_each_image(const PromptLayout& prompt);
std::vector<int64_t> text_behind_last_image(const PromptLayout& prompt);
std::vector<int64_t> text_of_example(const PromptLayout& prompt, int example);

// Indices in the current sequence of these text tokens, int64, on the model's device, without waiting for it.
at::Tensor text_tokens_at(const TokenLayout& layout, std::span<const int64_t> ordinals);

// One group an image that has tokens: the text of text_of_each_image (none: the last row) x the image's tokens. Their
// columns are all image tokens, in order.
std::vector<AttentionProbe::Group> own_text_groups(const TokenLayout& layout);

}  // namespace espalier
