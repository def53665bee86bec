// SPDX-License-Identifier: Apache-2.0
#include "pruning/catp_budget.h"

#include <algorithm>
#include <numeric>

namespace espalier {

namespace {

class Counter {
 public:
  Counter(const CatpOptions& options, const PromptLayout& prompt)
      : options_(options),
        prompt_(prompt),
        protected_(protected_per_image(prompt, options.row_breaks_compete, options.common.min_per_image)) {
    for (int i = 0; i < static_cast<int>(prompt.images.size()); ++i)
      sizes_.push_back(prompt.num_image_tokens(i, options.row_breaks_compete));
  }

  int64_t size(int64_t image) const { return sizes_[image]; }
  int64_t size(const std::vector<int64_t>& images) const {
    return std::accumulate(images.begin(), images.end(), int64_t{0},
                           [&](int64_t sum, int64_t i) { return sum + sizes_[i]; });
  }

  // 1 - R. num_kept n stands for n of all image tokens.
  Fraction keep_ratio() const {
    if (options_.amount.keep_ratio) return *options_.amount.keep_ratio;
    const int64_t all = std::max<int64_t>(1, std::accumulate(sizes_.begin(), sizes_.end(), int64_t{0}));
    return {std::min(*options_.amount.num_kept, all), all};
  }

  int64_t share(Fraction ratio, int64_t size) const {
    return std::clamp<int64_t>(rounded_share(ratio, size, options_.rounding), std::min<int64_t>(1, size), size);
  }

  int64_t with_pins(int64_t kept, std::span<const int64_t> images) const {
    return with_protected("catp", kept, images, prompt_, protected_);
  }

 private:
  const CatpOptions& options_;
  const PromptLayout& prompt_;
  std::vector<int64_t> protected_, sizes_;
};

bool has_text_of_examples(const PromptLayout& prompt) {
  return std::any_of(prompt.segments.begin(), prompt.segments.end(), [](const Segment& s) {
    return s.kind == Segment::Kind::kText && s.example >= 0 && s.end > s.begin;
  });
}

void count_stage2(const CatpOptions& options, const PromptLayout& prompt, const Counter& counter, CatpBudget& budget) {
  const Fraction ratio = counter.keep_ratio();
  const int64_t context_size = counter.size(budget.context_images), query_size = counter.size(budget.query_images);
  int64_t context = counter.share(ratio, context_size);
  if (options.ranking == CatpOptions::Ranking::kPerImage) {
    budget.context_per_image = budget.stage1;
    context = 0;
    for (const int64_t i : budget.context_images) {
      const int64_t kept = counter.with_pins(counter.share(ratio, counter.size(i)), {&i, 1});
      context += budget.context_per_image[i] = std::min(kept, budget.stage1[i]);
    }
  }
  int64_t query = counter.share(ratio, query_size);
  if (options.counts == CatpOptions::Counts::kExactTotal) {
    const int64_t total = rounded_share(ratio, context_size + query_size, options.rounding);
    query = std::clamp(total - context, std::min<int64_t>(1, query_size), query_size);
  }
  const int64_t context_left = budget.after_stage1(budget.context_images),
                query_left = budget.after_stage1(budget.query_images);
  budget.context = std::min(counter.with_pins(context, budget.context_images), context_left);
  budget.query = std::min(counter.with_pins(query, budget.query_images), query_left);
  budget.prunes_context = budget.context < context_left;
  budget.can_compare_query = context_size > 0 || has_text_of_examples(prompt);
}

}  // namespace

int64_t CatpBudget::after_stage1(const std::vector<int64_t>& images) const {
  int64_t sum = 0;
  for (const int64_t i : images) sum += stage1[i];
  return sum;
}

CatpBudget catp_budget(const CatpOptions& options, const PromptLayout& prompt) {
  const Counter counter(options, prompt);
  const Fraction stage1_ratio = remaining_after(counter.keep_ratio(), options.stage1_share);
  CatpBudget budget;
  for (int64_t i = 0; i < static_cast<int64_t>(prompt.images.size()); ++i) {
    const int example = prompt.example_of_image(static_cast<int>(i));
    if (example == prompt.query_example) budget.query_images.push_back(i);
    if (example >= 0 && example != prompt.query_example) budget.context_images.push_back(i);
    budget.stage1.push_back(counter.with_pins(counter.share(stage1_ratio, counter.size(i)), {&i, 1}));
    budget.prunes_stage1 |= budget.stage1.back() < counter.size(i);
  }
  budget.context = budget.after_stage1(budget.context_images);
  budget.query = budget.after_stage1(budget.query_images);
  if (options.stage1_share.num < options.stage1_share.den) count_stage2(options, prompt, counter, budget);
  return budget;
}

}  // namespace espalier
