// SPDX-License-Identifier: Apache-2.0
#include "pruning/selection.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/bincount.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <string>

#include "espalier/error.h"
#include "espalier/ops.h"

namespace espalier {

namespace {

__extension__ using Int128 = __int128;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

int64_t narrow(Int128 value) {
  if (value > std::numeric_limits<int64_t>::max() || value < std::numeric_limits<int64_t>::min())
    throw Error("policy: the fractions of this spec have too many digits to be combined exactly");
  return static_cast<int64_t>(value);
}

int64_t kept_by(const PoolRule& rule, int64_t pool) {
  const int64_t kept = kept_of(rule.amount, pool, rule.rounding);
  return rule.at_least_one && rule.amount.keep_ratio ? std::max(kept, std::min<int64_t>(1, pool)) : kept;
}

at::Tensor block_starts(std::span<const int64_t> sizes) {
  std::vector<int64_t> starts(sizes.size() + 1, 0);
  std::partial_sum(sizes.begin(), sizes.end(), starts.begin() + 1);
  return int64_tensor(starts);
}

}  // namespace

int64_t rounded_share(Fraction share, int64_t pool, Rounding rounding) {
  const Int128 product = static_cast<Int128>(share.num) * pool, den = share.den;
  const Int128 whole = product / den, rest = product % den;
  bool up = false;
  switch (rounding) {
    case Rounding::kNearestEven:
      up = 2 * rest > den || (2 * rest == den && whole % 2 == 1);
      break;
    case Rounding::kFloor:  // the guard: 0.999999999 or more of a token counts as one
      up = (den - rest) * 1'000'000'000 <= den;
      break;
    case Rounding::kCeil:
      up = rest * 1'000'000'000 > den;
      break;
  }
  return narrow(whole + (up ? 1 : 0));
}

Fraction remaining_after(Fraction a, Fraction b) {
  const Int128 den = static_cast<Int128>(a.den) * b.den;
  const Int128 num = den - static_cast<Int128>(a.den - a.num) * b.num;
  Int128 x = num, y = den;
  while (y != 0) {
    const Int128 rest = x % y;
    x = y;
    y = rest;
  }
  return {narrow(num / x), narrow(den / x)};
}

void check_amount(std::string_view policy, const Amount& amount) {
  const std::string who(policy);
  if (amount.keep_ratio && amount.num_kept) throw Error(who + ": give keep_ratio or num_kept, not both");
  if (!amount.keep_ratio && !amount.num_kept) throw Error(who + ": keep_ratio or num_kept is needed");
  if (amount.keep_ratio) {
    const auto [num, den] = *amount.keep_ratio;
    if (den <= 0 || num <= 0 || num > den)
      throw Error(who + ": keep_ratio=" + std::to_string(num) + "/" + std::to_string(den) +
                  " is not above 0 and at most 1");
  }
  if (amount.num_kept && *amount.num_kept < 0)
    throw Error(who + ": num_kept=" + std::to_string(*amount.num_kept) + " is below 0");
}

int64_t kept_of(const Amount& amount, int64_t pool, Rounding rounding) {
  if (amount.num_kept) return std::min(*amount.num_kept, pool);
  return std::min(rounded_share(*amount.keep_ratio, pool, rounding), pool);
}

std::vector<int64_t> protected_per_image(const PromptLayout& prompt, bool with_row_breaks, int64_t min_per_image) {
  std::vector<int64_t> numbers;
  for (int i = 0; i < static_cast<int>(prompt.images.size()); ++i)
    numbers.push_back(
        std::max(prompt.pinned_per_image[i], std::min(min_per_image, prompt.num_image_tokens(i, with_row_breaks))));
  return numbers;
}

int64_t with_protected(std::string_view policy, int64_t kept, std::span<const int64_t> of_images,
                       const PromptLayout& prompt, std::span<const int64_t> protected_tokens) {
  int64_t pinned = 0, stay = 0;
  for (const int64_t image : of_images) {
    pinned += prompt.pinned_per_image[image];
    stay += protected_tokens[image];
  }
  if (pinned > kept)
    throw Error(std::string(policy) + ": the amount keeps " + std::to_string(kept) + " tokens of a pool in which " +
                std::to_string(pinned) + " are pinned");
  return std::max(kept, stay);
}

std::vector<int64_t> kept_per_image(const PoolRule& rule, const PromptLayout& prompt) {
  const auto stay = protected_per_image(prompt, rule.with_row_breaks, rule.min_per_image);
  std::vector<int64_t> kept;
  for (int64_t i = 0; i < static_cast<int64_t>(prompt.images.size()); ++i) {
    const int64_t pool = prompt.num_image_tokens(static_cast<int>(i), rule.with_row_breaks);
    kept.push_back(with_protected(rule.policy, kept_by(rule, pool), {&i, 1}, prompt, stay));
  }
  return kept;
}

int64_t kept_of_request(const PoolRule& rule, const PromptLayout& prompt) {
  std::vector<int64_t> images(prompt.images.size());
  std::iota(images.begin(), images.end(), int64_t{0});
  const int64_t pool = prompt.num_image_tokens(rule.with_row_breaks);
  return with_protected(rule.policy, kept_by(rule, pool), images, prompt,
                        protected_per_image(prompt, rule.with_row_breaks, rule.min_per_image));
}

std::vector<int64_t> tokens_per_image(const TokenLayout& layout, bool with_row_breaks) {
  const auto num_images = static_cast<int64_t>(layout.prompt->images.size());
  std::vector<int64_t> numbers(num_images);
  if (layout.image.is_same(layout.prompt->image)) {
    for (int64_t i = 0; i < num_images; ++i)
      numbers[i] = layout.prompt->num_image_tokens(static_cast<int>(i), with_row_breaks);
    return numbers;
  }
  const at::Tensor counted = at::bincount(layout.image.index_select(0, layout.image_tokens), {}, num_images).cpu();
  std::copy_n(counted.const_data_ptr<int64_t>(), num_images, numbers.begin());
  return numbers;
}

Blocks blocks_within(std::vector<int64_t> sizes, std::vector<int64_t> wanted) {
  for (size_t i = 0; i < sizes.size(); ++i) wanted[i] = std::min(wanted[i], sizes[i]);
  return {std::move(sizes), std::move(wanted)};
}

at::Tensor int64_tensor(std::span<const int64_t> values) {
  at::Tensor tensor = at::empty({static_cast<int64_t>(values.size())}, at::kLong);
  std::copy(values.begin(), values.end(), tensor.data_ptr<int64_t>());
  return tensor;
}

at::Tensor indices_of(const at::Tensor& mask, std::optional<int64_t> count) {
  if (!count || mask.device().is_cpu()) return mask.nonzero().squeeze(1);
  const int64_t n = mask.size(0);  // the false ones sort behind the true ones
  const at::Tensor rank = at::arange(n, mask.options().dtype(at::kLong)) + mask.logical_not().to(at::kLong) * n;
  return std::get<0>(rank.sort()).slice(0, 0, *count);
}

at::Tensor keep_best(const at::Tensor& scores, const at::Tensor& always, const Blocks& blocks,
                     std::span<const int64_t> protected_tokens, std::span<const int64_t> image_sizes) {
  at::Tensor ranked = scores.masked_fill(always, kInfinity);
  if (std::any_of(protected_tokens.begin(), protected_tokens.end(), [](int64_t number) { return number > 0; })) {
    std::vector<int64_t> stay(image_sizes.size());  // fewer where an earlier policy of a pipeline left fewer
    for (size_t i = 0; i < stay.size(); ++i) stay[i] = std::min(protected_tokens[i], image_sizes[i]);
    const at::Tensor best = ops::topk_sorted(ranked, block_starts(image_sizes), int64_tensor(stay));
    ranked = ranked.index_fill(0, best, kInfinity);
  }
  return ops::topk_sorted(ranked, block_starts(blocks.sizes), int64_tensor(blocks.num_kept));
}

}  // namespace espalier
