// SPDX-License-Identifier: Apache-2.0
#include "espalier/policies/amount.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "base/error_text.h"
#include "espalier/error.h"
#include "espalier/token_layout.h"

namespace espalier {

namespace {

__extension__ using Int128 = __int128;

int64_t narrow(Int128 value) {
  if (value > std::numeric_limits<int64_t>::max() || value < std::numeric_limits<int64_t>::min())
    throw Error("policy: the fractions of this spec have too many digits to be combined exactly");
  return static_cast<int64_t>(value);
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
      throw Error(who + ": keep_ratio=" + (den > 0 ? to_string({num, den}) : text_of(num, "/", den)) +
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

std::string to_string(Fraction fraction) {
  const int64_t divisor = std::max<int64_t>(1, std::gcd(fraction.num, fraction.den));
  const int64_t num = fraction.num / divisor, den = fraction.den / divisor;
  return den == 1 ? std::to_string(num) : std::to_string(num) + "/" + std::to_string(den);
}

}  // namespace espalier
