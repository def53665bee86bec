// SPDX-License-Identifier: Apache-2.0
#include "pruning/catp_budget.h"

#include <algorithm>
#include <numeric>
#include <string>

#include "espalier/error.h"

namespace espalier {

namespace {

class Counter {
 public:
  Counter(const CatpOptions& options, const PromptLayout& prompt, std::string_view policy)
      : options_(options),
        prompt_(prompt),
        policy_(policy),
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
    return with_protected(policy_, kept, images, prompt_, protected_);
  }

 private:
  const CatpOptions& options_;
  const PromptLayout& prompt_;
  std::string_view policy_;
  std::vector<int64_t> protected_, sizes_;
};

bool has_text_of_examples(const PromptLayout& prompt) {
  return std::any_of(prompt.segments.begin(), prompt.segments.end(), [](const Segment& s) {
    return s.kind == Segment::Kind::kText && s.example >= 0 && s.end > s.begin;
  });
}

// Parts of the unpruned pools that are left behind each step.
struct Shares {
  Fraction stage1, context, query;
};

Fraction complement(Fraction a) {
  return {a.den - a.num, a.den};
}
Fraction times(Fraction a, Fraction b) {  // up to 1
  return complement(remaining_after(complement(a), b));
}

// budget=mean leaves min(1, 10/7 r) before the cut, so that early layers see more than late ones.
bool fits_ten_sevenths(Fraction r) {
  return 10 * static_cast<double>(r.num) < 7 * static_cast<double>(r.den);
}

// And this from layer `cut` on, so that the mean over all layers is r.
Fraction left_for_mean(Fraction r, int cut, CatpDepth depth, std::string_view policy) {
  const int64_t n = depth.num_layers, rest = n - cut;
  if (10 * int64_t{cut} >= 7 * n)
    throw Error(std::string(policy) + ": budget=mean leaves nothing for the layers from " + std::to_string(cut) +
                " on, of " + std::to_string(n) + ": k must be below 7/10 of the depth");
  if (!fits_ten_sevenths(r)) return remaining_after(r, {n, rest});  // (n r - cut) / rest
  return times(r, {7 * n - 10 * int64_t{cut}, 7 * rest});           // (n r - cut 10/7 r) / rest
}

Shares shares_of(const CatpOptions& options, Fraction ratio, CatpDepth depth, std::string_view policy) {
  const bool has_stage2 = options.stage1_share.num < options.stage1_share.den;
  if (options.budget == CatpOptions::BudgetOf::kFinal || !has_stage2)
    return {remaining_after(ratio, options.stage1_share), ratio, ratio};
  const int after = options.query_cut == CatpOptions::QueryCut::kAfter ? 1 : 0;
  return {fits_ten_sevenths(ratio) ? times(ratio, {10, 7}) : Fraction{1, 1},
          left_for_mean(ratio, depth.k, depth, policy), left_for_mean(ratio, depth.k + after, depth, policy)};
}

void count_stage2(const CatpOptions& options, const Shares& shares, const PromptLayout& prompt, const Counter& counter,
                  CatpBudget& budget) {
  const int64_t context_size = counter.size(budget.context_images), query_size = counter.size(budget.query_images);
  const auto count_each = [&](const std::vector<int64_t>& images, Fraction ratio) {
    if (budget.per_image.empty()) budget.per_image = budget.stage1;
    int64_t sum = 0;
    for (const int64_t i : images) {
      const int64_t kept = counter.with_pins(counter.share(ratio, counter.size(i)), {&i, 1});
      sum += budget.per_image[i] = std::min(kept, budget.stage1[i]);
    }
    return sum;
  };
  int64_t context = counter.share(shares.context, context_size);
  if (options.ranking == CatpOptions::Ranking::kPerImage) context = count_each(budget.context_images, shares.context);
  int64_t query = counter.share(shares.query, query_size);
  if (judges_query_by_image(options)) query = count_each(budget.query_images, shares.query);
  if (options.counts == CatpOptions::Counts::kExactTotal) {
    const int64_t total = rounded_share(shares.context, context_size + query_size, options.rounding);
    query = std::clamp(total - context, std::min<int64_t>(1, query_size), query_size);
  }
  const int64_t context_left = budget.after_stage1(budget.context_images),
                query_left = budget.after_stage1(budget.query_images);
  budget.context = std::min(counter.with_pins(context, budget.context_images), context_left);
  budget.query = std::min(counter.with_pins(query, budget.query_images), query_left);
  budget.prunes_context = budget.context < context_left;
  budget.can_rank_query =
      options.query_score != CatpOptions::QueryScore::kCosine || context_size > 0 || has_text_of_examples(prompt);
}

}  // namespace

int64_t CatpBudget::after_stage1(const std::vector<int64_t>& images) const {
  int64_t sum = 0;
  for (const int64_t i : images) sum += stage1[i];
  return sum;
}

bool judges_query_by_image(const CatpOptions& options) {
  return options.selection == CatpOptions::Selection::kDpp ||
         (options.query_cut == CatpOptions::QueryCut::kTogether && options.ranking == CatpOptions::Ranking::kPerImage);
}

CatpBudget catp_budget(const CatpOptions& options, const PromptLayout& prompt, CatpDepth depth,
                       std::string_view policy) {
  const Counter counter(options, prompt, policy);
  const Shares shares = shares_of(options, counter.keep_ratio(), depth, policy);
  CatpBudget budget;
  for (int64_t i = 0; i < static_cast<int64_t>(prompt.images.size()); ++i) {
    const int example = prompt.example_of_image(static_cast<int>(i));
    if (example == prompt.query_example) budget.query_images.push_back(i);
    if (example >= 0 && example != prompt.query_example) budget.context_images.push_back(i);
    budget.stage1.push_back(counter.with_pins(counter.share(shares.stage1, counter.size(i)), {&i, 1}));
    budget.prunes_stage1 |= budget.stage1.back() < counter.size(i);
  }
  budget.context = budget.after_stage1(budget.context_images);
  budget.query = budget.after_stage1(budget.query_images);
  if (options.stage1_share.num < options.stage1_share.den) count_stage2(options, shares, prompt, counter, budget);
  return budget;
}

}  // namespace espalier
