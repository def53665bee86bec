// SPDX-License-Identifier: Apache-2.0
#include "pruning/prompt_text.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>

namespace espalier {

namespace {

constexpr auto kText = Segment::Kind::kText;

// Calls visit(segment, first ordinal, end) for each run of text, and visit(segment, …) with an empty range for the
// rest.
template <typename Visit>
void for_each_segment(const PromptLayout& prompt, Visit&& visit, int64_t begin = 0) {
  int64_t ordinal = 0;
  for (const Segment& s : prompt.segments) {
    if (s.begin < begin) continue;
    const int64_t end = ordinal + (s.kind == kText ? s.end - s.begin : 0);
    visit(s, ordinal, end);
    ordinal = end;
  }
}

void append(std::vector<int64_t>& ordinals, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) ordinals.push_back(i);
}

}  // namespace

std::vector<std::vector<int64_t>> text_of_each_image(const PromptLayout& prompt, int64_t begin) {
  std::vector<std::vector<int64_t>> texts(prompt.images.size());
  int image = -1, example = -1;
  for_each_segment(
      prompt,
      [&](const Segment& s, int64_t first, int64_t last) {
        if (s.kind != kText) {
          if (s.image != image) example = prompt.example_of_image(s.image);
          image = s.image;
        } else if (image >= 0 && s.example == example) {
          append(texts[image], first, last);
        }
      },
      begin);
  return texts;
}

std::vector<std::vector<int64_t>> text_behind_each_image(const PromptLayout& prompt) {
  std::vector<std::vector<int64_t>> texts(prompt.images.size());
  for_each_segment(prompt, [&](const Segment& s, int64_t begin, int64_t end) {
    if (s.kind != kText) texts[s.image].clear();
    for (auto& text : texts) append(text, begin, end);
  });
  return texts;
}

std::vector<int64_t> text_behind_last_image(const PromptLayout& prompt) {
  std::vector<int64_t> ordinals;
  for_each_segment(prompt, [&](const Segment& s, int64_t begin, int64_t end) {
    if (s.kind != kText) ordinals.clear();
    append(ordinals, begin, end);
  });
  return ordinals;
}

std::vector<int64_t> text_of_example(const PromptLayout& prompt, int example) {
  std::vector<int64_t> ordinals;
  for_each_segment(prompt, [&](const Segment& s, int64_t begin, int64_t end) {
    if (s.example == example) append(ordinals, begin, end);
  });
  return ordinals;
}

at::Tensor text_tokens_at(const TokenLayout& layout, std::span<const int64_t> ordinals) {
  int64_t total = 0;
  for (const Segment& s : layout.prompt->segments)
    if (s.kind == kText && s.begin >= layout.begin) total += s.end - s.begin;
  const at::Tensor text = indices_of(layout.kind == static_cast<int64_t>(kText), total);
  return text.index_select(0, int64_tensor(ordinals).to(text.device()));
}

std::vector<AttentionProbe::Group> own_text_groups(const TokenLayout& layout) {
  const std::vector<int64_t> sizes = layout.tokens_per_image();
  const std::vector<std::vector<int64_t>> texts = text_of_each_image(*layout.prompt, layout.begin);
  const int64_t n = layout.num_tokens();
  std::vector<AttentionProbe::Group> groups;
  int64_t begin = 0;
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] == 0) continue;
    const at::Tensor rows =
        texts[i].empty() ? at::arange(n - 1, n, layout.image_tokens.options()) : text_tokens_at(layout, texts[i]);
    groups.push_back({rows, layout.image_tokens.slice(0, begin, begin + sizes[i])});
    begin += sizes[i];
  }
  return groups;
}

}  // namespace espalier
