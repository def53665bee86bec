// SPDX-License-Identifier: Apache-2.0
// What the policies share: how many tokens of a pool stay, and which, given a score. Counts are exact integers on the
// host; scores and choices are tensors on the model's device, and nothing here waits for it unless said so.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "espalier/policies/amount.h"
#include "espalier/token_layout.h"

namespace espalier {

// share · pool, exactly (num · pool is never a float). 0 <= share.
int64_t rounded_share(Fraction share, int64_t pool, Rounding rounding);
// 1 - (1 - a)·b, which is what remains when the part b of the loss 1 - a is taken. Throws Error when the digits do not
// fit 64 bits.
Fraction remaining_after(Fraction a, Fraction b);

// Throws Error unless exactly one of the two is given, and in its range.
void check_amount(std::string_view policy, const Amount& amount);
// Of a pool of unpruned tokens, at most all of it.
int64_t kept_of(const Amount& amount, int64_t pool, Rounding rounding);

// Tokens of each image that stay whatever their score: the pinned ones, and min_per_image with them. From the host's
// facts.
std::vector<int64_t> protected_per_image(const PromptLayout& prompt, bool with_row_breaks, int64_t min_per_image);
// The number that stays of a pool that wants `kept`: raised to the protected ones. Throws Error when fewer than the
// pinned are wanted.
int64_t with_protected(std::string_view policy, int64_t kept, std::span<const int64_t> of_images,
                       const PromptLayout& prompt, std::span<const int64_t> protected_tokens);

// What an amount comes to, protected tokens included. One number an image where each is a pool of its own; else one of
// the request.
struct PoolRule {
  std::string_view policy;  // for messages
  Amount amount;
  Rounding rounding = Rounding::kNearestEven;
  bool with_row_breaks = false;
  int64_t min_per_image = 0;
  bool at_least_one = false;  // a ratio leaves one token of a pool that has any
};
std::vector<int64_t> kept_per_image(const PoolRule& rule, const PromptLayout& prompt);
int64_t kept_of_request(const PoolRule& rule, const PromptLayout& prompt);

// Competing tokens of each image that are there now. The host knows for a sequence that nothing has left; else the
// device is asked, and waited for.
std::vector<int64_t> tokens_per_image(const TokenLayout& layout, bool with_row_breaks);

// int64 [values] on the CPU.
at::Tensor int64_tensor(std::span<const int64_t> values);
// Ascending indices of the true entries. With their number given, a device is not waited for.
at::Tensor indices_of(const at::Tensor& mask, std::optional<int64_t> count = std::nullopt);

// Consecutive blocks of image tokens, each with the number that stays.
struct Blocks {
  std::vector<int64_t> sizes;
  std::vector<int64_t> num_kept;
};

// Blocks that keep what is wanted of each, or all where an earlier policy left less.
Blocks blocks_within(std::vector<int64_t> sizes, std::vector<int64_t> wanted);

// The best of each block as ascending ordinals, int64 [sum of num_kept]; ties to the lower one. scores float32 [m].
// `always` bool [m]: tokens that stay whatever their score. `protected_tokens` (one number an image, none: empty) of
// the best of each image stay as well; the caller has made room for both, and gives the images' sizes with them.
at::Tensor keep_best(const at::Tensor& scores, const at::Tensor& always, const Blocks& blocks,
                     std::span<const int64_t> protected_tokens = {}, std::span<const int64_t> image_sizes = {});

}  // namespace espalier
