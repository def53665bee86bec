// SPDX-License-Identifier: Apache-2.0
// How much a policy keeps, as the user states it. Exact: 2/9 of 576 tokens is 128, where 0.2222 would lose one to a
// floor. What a pool is (the request, each image, each crop) is said by each policy.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace espalier {

struct PromptLayout;

struct Fraction {
  int64_t num = 0;
  int64_t den = 1;
  bool operator==(const Fraction&) const = default;
};

// Exactly one of the two, where a policy takes an amount.
struct Amount {
  std::optional<Fraction> keep_ratio = {};  // of the unpruned pool, in (0, 1]
  std::optional<int64_t> num_kept = {};     // tokens of the pool; a number above its size keeps the pool
  bool operator==(const Amount&) const = default;
};

// The same for policies that drop in stages: one of the two, one entry a stage, never rising. A single ratio r is r,
// r/2, r/4, ….
struct StageAmounts {
  std::vector<Fraction> keep_ratio = {};
  std::vector<int64_t> num_kept = {};
  bool operator==(const StageAmounts&) const = default;
};

enum class Rounding : uint8_t {
  kNearestEven,
  kFloor,  // floor(x + 1e-9)
  kCeil,   // ceil(x - 1e-9)
};

// ---- arithmetic, for methods that count in their own way ----

// share · pool, exactly (num · pool is never a float). 0 <= share.
int64_t rounded_share(Fraction share, int64_t pool, Rounding rounding);
// 1 - (1 - a)·b, which is what remains when the part b of the loss 1 - a is taken. Throws Error when the digits do not
// fit 64 bits.
Fraction remaining_after(Fraction a, Fraction b);
// "a/b", reduced; "a" where b is 1.
std::string to_string(Fraction fraction);

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

}  // namespace espalier
