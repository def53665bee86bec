// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/merge_tokens/merge_tokens.h"
#include "kernels/support/vec.h"

namespace espalier::kernels {
namespace {

// Columns whose sums stay in registers while the group's rows pass by: two cache lines of a 16-bit row.
constexpr int64_t kVectors = 4;
constexpr int64_t kColumns = 16 * kVectors;

float total_weight(const MergeGroups& groups, int64_t begin, int64_t end) {
  if (groups.weight == nullptr) return static_cast<float>(end - begin);
  float total = 0.0F;
  for (int64_t j = begin; j < end; ++j) total += groups.weight[j];
  return total;
}

template <typename T>
void merge_group(const T* x, const MergeGroups& groups, T* out, const MergeShape& shape, int64_t begin, int64_t end) {
  const float total = total_weight(groups, begin, end);
  const Floats divisor = all(total == 0.0F ? 1.0F : total);
  if (total == 0.0F) end = begin;  // nothing to divide by: zeros
  const auto row = [&](int64_t j) { return x + groups.index[j] * shape.stride; };
  const auto weight = [&](int64_t j) { return all(groups.weight == nullptr ? 1.0F : groups.weight[j]); };
  int64_t i = 0;
  for (; i + kColumns <= shape.d; i += kColumns) {
    Floats sums[kVectors] = {};
    for (int64_t j = begin; j < end; ++j) {
      const T* from = row(j) + i;
      const Floats w = weight(j);
      for (int64_t v = 0; v < kVectors; ++v) sums[v] = mul_add(w, load16(from + 16 * v), sums[v]);
    }
    for (int64_t v = 0; v < kVectors; ++v) store16(out + i + 16 * v, sums[v] / divisor);
  }
  for_each_16(shape.d - i, [&](int64_t k, auto... there) {
    Floats sum = all(0.0F);
    for (int64_t j = begin; j < end; ++j) sum = mul_add(weight(j), load16(row(j) + i + k, there...), sum);
    store16(out + i + k, sum / divisor, there...);
  });
}

}  // namespace

void ESPALIER_LEVEL::merge_tokens(ElementType type, const void* x, const MergeGroups& groups, void* out,
                                  const MergeShape& shape, int64_t begin, int64_t end) {
  visit_bits(type, [&]<typename T>(T*) {
    for (int64_t group = begin; group < end; ++group)
      merge_group(static_cast<const T*>(x), groups, static_cast<T*>(out) + group * shape.d, shape,
                  groups.group_begin[group], groups.group_begin[group + 1]);
  });
}

}  // namespace espalier::kernels
