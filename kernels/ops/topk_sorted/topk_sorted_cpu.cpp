// SPDX-License-Identifier: Apache-2.0
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <vector>

#include "espalier/ops.h"
#include "kernels/ops/topk_sorted/topk_sorted.h"
#include "kernels/support/chosen_kernels.h"

namespace espalier::kernels {

namespace {

// An integer that ranks as the score does: NaN 0, then -inf .. inf. Adding 0 turns -0 into 0.
uint32_t rank_key(float score) {
  if (std::isnan(score)) return 0;
  const auto bits = std::bit_cast<uint32_t>(score + 0.0F);
  return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}

}  // namespace

// The num_kept-th largest key is a threshold: what is above it stays, and of those equal to it the first ones. Walking
// in order makes the output ascending without a sort.
void topk_sorted_plain(const float* scores, int64_t begin, int64_t end, int64_t num_kept, int64_t* out) {
  if (num_kept == 0) return;
  std::vector<uint32_t> keys(static_cast<size_t>(end - begin));
  std::transform(scores + begin, scores + end, keys.begin(), rank_key);
  std::nth_element(keys.begin(), keys.begin() + (num_kept - 1), keys.end(), std::greater<>());
  const uint32_t threshold = keys[static_cast<size_t>(num_kept - 1)];
  // nth_element leaves everything above the threshold in front of it.
  int64_t ties =
      num_kept - std::count_if(keys.begin(), keys.begin() + num_kept, [&](uint32_t k) { return k > threshold; });
  for (int64_t i = begin; i < end; ++i) {
    const uint32_t key = rank_key(scores[i]);
    if (key > threshold || (key == threshold && ties-- > 0)) *out++ = i;
  }
}

}  // namespace espalier::kernels

namespace espalier::ops {
namespace {

constexpr int64_t kScoresPerTask = 1 << 13;

Tensor topk_sorted_cpu(const Tensor& scores, const Tensor& block_begin, const Tensor& num_kept) {
  const int64_t total = kernels::check_topk_sorted(scores, block_begin, num_kept);
  kernels::note_kernel("topk_sorted", "plain");
  Tensor out = at::empty({total}, scores.options().dtype(at::kLong));
  if (total == 0) return out;
  const Tensor row = scores.contiguous();
  const int64_t b = num_kept.size(0);
  const int64_t* begins = block_begin.const_data_ptr<int64_t>();
  const int64_t* kept = num_kept.const_data_ptr<int64_t>();
  std::vector<int64_t> out_begin(static_cast<size_t>(b), 0);
  for (int64_t i = 1; i < b; ++i) out_begin[i] = out_begin[i - 1] + kept[i - 1];
  const int64_t mean_size = std::max<int64_t>(1, (begins[b] - begins[0]) / b);
  at::parallel_for(0, b, std::max<int64_t>(1, kScoresPerTask / mean_size), [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i)
      kernels::topk_sorted_plain(row.const_data_ptr<float>(), begins[i], begins[i + 1], kept[i],
                                 out.mutable_data_ptr<int64_t>() + out_begin[i]);
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CPU, m) {
  m.impl("topk_sorted", topk_sorted_cpu);
}

}  // namespace espalier::ops
