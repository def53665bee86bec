// SPDX-License-Identifier: Apache-2.0
#include "kernels/support/row_dots.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <new>

#include "kernels/support/row_dots_vector.h"

namespace espalier::kernels {

namespace {

// Words summed in registers before they are added to the result: bounds the rounding error, and keeps the panel's part
// in the L1 cache.
constexpr int64_t kSummedWords = 256;

// Words up to which matrix registers read a panel.
int64_t padded(int64_t words) {
  return (words + 15) / 16 * 16;
}

// Half to float: the exponent is rebased by one multiplication, which also normalises subnormals; infinities and NaN
// are put right after.
float half_to_float(uint16_t half) {
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7fffU) << 13;
  float value = std::bit_cast<float>(magnitude) * 0x1p112F;
  if ((half & 0x7c00U) == 0x7c00U) value = std::bit_cast<float>(magnitude | 0x7f800000U);
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | static_cast<uint32_t>(half & 0x8000U) << 16);
}

void dots_plain(const uint32_t* row, int64_t first, int64_t last, const uint32_t* panel, bool is_first, float* out) {
  float sum[DotPanel::kColumns] = {};
  for (int64_t k = first; k < last; ++k) {
    const float value = std::bit_cast<float>(row[k]);
    const auto* column = reinterpret_cast<const float*>(panel + k * DotPanel::kColumns);
    for (int64_t c = 0; c < DotPanel::kColumns; ++c) sum[c] += value * column[c];
  }
  for (int64_t c = 0; c < DotPanel::kColumns; ++c) out[c] = is_first ? sum[c] : out[c] + sum[c];
}

}  // namespace

float load_element(const void* data, int64_t i, ElementType type) {
  if (type == ElementType::kFloat32) return static_cast<const float*>(data)[i];
  const uint16_t bits = static_cast<const uint16_t*>(data)[i];
  return type == ElementType::kBFloat16 ? std::bit_cast<float>(static_cast<uint32_t>(bits) << 16) : half_to_float(bits);
}

void DotPanel::Free::operator()(void* memory) const {
  std::free(memory);
}

DotPanel::Words DotPanel::allocate(int64_t words) {
  constexpr int64_t kAlignment = 64;
  const int64_t bytes = (words * 4 + kAlignment - 1) / kAlignment * kAlignment;
  void* memory = std::aligned_alloc(kAlignment, std::max(bytes, kAlignment));
  if (memory == nullptr) throw std::bad_alloc();
  return Words(static_cast<uint32_t*>(memory));
}

DotPanel::DotPanel(int64_t d, ElementType type, CpuLevel level)
    : d_(d),
      type_(type),
      level_(level),
      has_pairs_(level >= CpuLevel::kAvx512 && type == ElementType::kBFloat16),
      words_(has_pairs_ ? (d + 1) / 2 : d),
      panel_(allocate(padded(words_) * kColumns)),
      staging_(allocate(words_ * kStagedRows)) {
  std::fill(panel_.get() + words_ * kColumns, panel_.get() + padded(words_) * kColumns, 0U);
}

void DotPanel::pack(const void* const* rows, int64_t count) {
  count_ = count;
  if (PackPanelLoop* vector = vector_form(level_, avx2::pack_panel, avx512::pack_panel))
    return vector(rows, count, d_, type_, has_pairs_, panel_.get());
  auto* panel = reinterpret_cast<float*>(panel_.get());
  for (int64_t k = 0; k < d_; ++k) {
    for (int64_t c = 0; c < kColumns; ++c) panel[k * kColumns + c] = c < count ? load_element(rows[c], k, type_) : 0.0F;
  }
}

const uint32_t* const* DotPanel::stage(const void* const* rows, int64_t num_rows) {
  const bool is_ready = type_ == ElementType::kFloat32 || (has_pairs_ && d_ % 2 == 0);
  for (int64_t r = 0; r < num_rows; ++r) {
    // A row of bfloat16 may begin between two words.
    if (is_ready && reinterpret_cast<uintptr_t>(rows[r]) % alignof(uint32_t) == 0) {
      staged_[r] = static_cast<const uint32_t*>(rows[r]);
      continue;
    }
    uint32_t* words = staging_.get() + r * words_;
    staged_[r] = words;
    if (ConvertRowLoop* vector = vector_form(level_, avx2::convert_row, avx512::convert_row)) {
      vector(rows[r], d_, type_, has_pairs_, words);
    } else {
      for (int64_t k = 0; k < d_; ++k) words[k] = std::bit_cast<uint32_t>(load_element(rows[r], k, type_));
    }
  }
  return staged_;
}

void DotPanel::dots(const void* const* rows, int64_t num_rows, float* out, bool takes_tiles) {
  PanelDotsLoop* vector = takes_tiles && has_pairs_ && level_ == CpuLevel::kAmx
                              ? amx::panel_dots
                              : vector_form(level_, avx2::panel_dots, avx512::panel_dots);
  for (int64_t r = 0; r < num_rows; r += kStagedRows) {
    const int64_t staged = std::min(kStagedRows, num_rows - r);
    const uint32_t* const* words = stage(rows + r, staged);
    float* block = out + r * kColumns;
    for (int64_t k = 0; k < std::max<int64_t>(words_, 1); k += kSummedWords) {
      const int64_t last = std::min(words_, k + kSummedWords);
      if (vector != nullptr) {
        vector(words, staged, k, last - k, panel_.get(), count_, has_pairs_, k == 0, block);
        continue;
      }
      for (int64_t i = 0; i < staged; ++i) dots_plain(words[i], k, last, panel_.get(), k == 0, block + i * kColumns);
    }
  }
}

}  // namespace espalier::kernels
