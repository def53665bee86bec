// SPDX-License-Identifier: Apache-2.0
// Similarities are multiples of 2^-23 (the step of float32 just below 1), kept as int32, and gains are int64: sums are
// exact in any order. So the gains can be kept up to date from the rows whose cover has changed, without drift, and
// equal rows tie exactly, on any number of threads.
#include <ATen/Parallel.h>

#include <algorithm>
#include <bit>
#include <limits>
#include <memory>
#include <vector>

#include "kernels/ops/cosine_score/cosine_score.h"
#include "kernels/ops/facility_location_greedy/facility_location_greedy.h"
#include "kernels/support/row_dots.h"

namespace espalier::kernels {

namespace {

constexpr int64_t kColumns = DotPanel::kColumns;

constexpr int64_t kExactTerms = 255;            // as many similarities fit into an int32 sum
constexpr int64_t kHeldSimilarities = 1 << 24;  // at a time, unless one block has more: 64 MB

// [size, size], symmetric. With kMinmax the bits of the float cosines until the range is known.
using SimilarityMatrix = std::unique_ptr<int32_t[]>;

float clamped(float cosine) {
  return std::min(1.0F, std::max(-1.0F, cosine));
}  // NaN becomes -1

// From 0 to 1, to the nearest.
int32_t fixed(float similarity) {
  return static_cast<int32_t>(similarity * kFixedOne + 0.5F);  // NOLINT(bugprone-incorrect-roundings): not negative
}

int32_t similarity_of(float cosine, ops::Similarity map) {
  if (map == ops::Similarity::kMinmax) return std::bit_cast<int32_t>(cosine);
  const float similarity = map == ops::Similarity::kAffine ? 0.5F * (1.0F + cosine) : std::max(cosine, 0.0F);
  return fixed(similarity);
}

void stretch_to_range(int32_t* matrix, int64_t count) {
  float low = 1.0F, high = -1.0F;
  for (int64_t i = 0; i < count; ++i) {
    low = std::min(low, std::bit_cast<float>(matrix[i]));
    high = std::max(high, std::bit_cast<float>(matrix[i]));
  }
  const float range = high - low;
  for (int64_t i = 0; i < count; ++i) {
    const float similarity = range < 1e-12F ? 0.5F : (std::bit_cast<float>(matrix[i]) - low) / range;
    matrix[i] = fixed(similarity);
  }
}

// The rows of one block and their similarities, filled in by tiles of columns.
struct BlockSimilarities {
  const FeatureRows& features;
  const CoverageBlock& block;
  CpuLevel level;
  SimilarityMatrix matrix;
  std::vector<float> inverse_norms;

  const void* row(int64_t i) const {
    return static_cast<const char*>(features.data) + (block.begin + i) * features.stride * element_size(features.type);
  }

  // Columns from `first` on against the rows from `first` on, and the mirror image: the products are equal bit for bit.
  void fill_tile(int64_t first, DotPanel& panel) {
    constexpr int64_t kRows = 64;
    const int64_t num_columns = std::min(kColumns, block.size - first);
    const void* pointers[std::max(kRows, kColumns)];
    float dots[kRows * kColumns];
    for (int64_t c = 0; c < num_columns; ++c) pointers[c] = row(first + c);
    panel.pack(pointers, num_columns);
    for (int64_t x = first; x < block.size; x += kRows) {
      const int64_t num_rows = std::min(kRows, block.size - x);
      for (int64_t r = 0; r < num_rows; ++r) pointers[r] = row(x + r);
      panel.dots(pointers, num_rows, dots);
      store(dots, x, num_rows, first, num_columns);
    }
  }

  void store(const float* dots, int64_t first_row, int64_t num_rows, int64_t first_column, int64_t num_columns) {
    const float* column_norm = &inverse_norms[first_column];
    for (int64_t r = 0; r < num_rows; ++r) {
      int32_t* out = &matrix[(first_row + r) * block.size + first_column];
      const float row_norm = inverse_norms[first_row + r];
      for (int64_t c = 0; c < num_columns; ++c) {
        out[c] = similarity_of(clamped(dots[r * kColumns + c] * (row_norm * column_norm[c])), block.objective.map);
      }
    }
    for (int64_t c = 0; c < num_columns; ++c) {
      int32_t* out = &matrix[(first_column + c) * block.size + first_row];
      const int32_t* in = &matrix[first_row * block.size + first_column + c];
      for (int64_t r = 0; r < num_rows; ++r) out[r] = in[r * block.size];
    }
  }
};

struct CoverChange {
  const int32_t* similarity;  // of the row whose cover rises, [size]
  int32_t before, after;
};

// gain[j] -= what the changed rows no longer give: min(max(sim, before), after) - before.
void lower_gains(const CoverChange* changes, int64_t count, int64_t size, int64_t* gain) {
  constexpr int64_t kStrip = 64;
  int64_t before = 0;
  for (int64_t i = 0; i < count; ++i) before += changes[i].before;
  for (int64_t first = 0; first < size; first += kStrip) {
    const int64_t width = std::min(kStrip, size - first);
    int32_t sum[kStrip] = {};
    for (int64_t i = 0; i < count; ++i) {
      const auto [similarity, low, high] = changes[i];
      for (int64_t j = 0; j < width; ++j) sum[j] += std::min(std::max(similarity[first + j], low), high);
    }
    for (int64_t j = 0; j < width; ++j) gain[first + j] -= sum[j] - before;
  }
}

class Greedy {
 public:
  Greedy(const int32_t* similarity, int64_t size, const CoverageObjective& objective)
      : similarity_(similarity),
        size_(size),
        objective_(objective),
        gain_(size),
        score_(size),
        cover_(size),
        is_picked_(size) {
    for (int64_t x = 0; x < size; ++x) {
      for (int64_t j = 0; j < size; ++j) gain_[j] += similarity[x * size + j];
    }
  }

  void run(int64_t num_kept, int64_t* picks) {
    int64_t step = 0;
    for (int64_t j = 0; objective_.forced != nullptr && j < size_ && step < num_kept; ++j) {
      if (objective_.forced[j]) take(picks[step++] = j);
    }
    while (step < num_kept) take(picks[step++] = best());
  }

 private:
  int64_t best() {
    constexpr double kNever = -std::numeric_limits<double>::infinity();
    const double step = objective_.coverage_scale / kFixedOne;
    double largest = kNever;
    for (int64_t j = 0; j < size_; ++j) {
      score_[j] = step * static_cast<double>(gain_[j]) + (objective_.modular == nullptr ? 0.0 : objective_.modular[j]);
      if (!is_picked_[j]) largest = std::max(largest, score_[j]);
    }
    int64_t first_free = -1;
    for (int64_t j = 0; j < size_; ++j) {
      if (is_picked_[j]) continue;
      if (score_[j] >= largest - kGainTie) return j;
      if (first_free < 0) first_free = j;
    }
    return first_free;  // every score left is NaN
  }

  void take(int64_t pick) {
    is_picked_[pick] = 1;
    CoverChange changes[kExactTerms];
    int64_t count = 0;
    for (int64_t x = 0; x < size_; ++x) {
      const int32_t similarity = similarity_[pick * size_ + x];
      if (similarity <= cover_[x]) continue;
      changes[count++] = {similarity_ + x * size_, cover_[x], similarity};
      cover_[x] = similarity;
      if (count < kExactTerms) continue;
      lower_gains(changes, count, size_, gain_.data());
      count = 0;
    }
    lower_gains(changes, count, size_, gain_.data());
  }

  const int32_t* similarity_;
  int64_t size_;
  const CoverageObjective& objective_;
  std::vector<int64_t> gain_;
  std::vector<double> score_;
  std::vector<int32_t> cover_;
  std::vector<uint8_t> is_picked_;
};

struct TileTask {
  int64_t block, first;
};

// Tiles of all blocks, long and short ones in turn: any cut in equal counts is nearly one in equal work.
std::vector<TileTask> tile_tasks(const CoverageBlock* blocks, int64_t count) {
  std::vector<TileTask> tasks;
  for (int64_t b = 0; b < count; ++b) {
    const int64_t num_tiles = (blocks[b].size + kColumns - 1) / kColumns;
    for (int64_t i = 0; i < num_tiles; ++i)
      tasks.push_back({b, (i % 2 == 0 ? i / 2 : num_tiles - 1 - i / 2) * kColumns});
  }
  return tasks;
}

// Blocks whose matrices are held together.
void run_batch(const FeatureRows& features, const CoverageBlock* blocks, int64_t count, CpuLevel level) {
  std::vector<BlockSimilarities> similarities;
  for (int64_t b = 0; b < count; ++b) {
    const int64_t size = blocks[b].size;
    similarities.push_back(
        {features, blocks[b], level, SimilarityMatrix(new int32_t[size * size]), std::vector<float>(size)});
    for (int64_t i = 0; i < size; ++i) {
      similarities[b].inverse_norms[i] = inverse_norm(similarities[b].row(i), features.type, features.d, level);
    }
  }
  const std::vector<TileTask> tasks = tile_tasks(blocks, count);
  at::parallel_for(0, static_cast<int64_t>(tasks.size()), 1, [&](int64_t first, int64_t last) {
    DotPanel panel(features.d, features.type, level);
    for (int64_t i = first; i < last; ++i) similarities[tasks[i].block].fill_tile(tasks[i].first, panel);
  });
  at::parallel_for(0, count, 1, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      int32_t* matrix = similarities[b].matrix.get();
      if (blocks[b].objective.map == ops::Similarity::kMinmax)
        stretch_to_range(matrix, blocks[b].size * blocks[b].size);
      Greedy(matrix, blocks[b].size, blocks[b].objective).run(blocks[b].num_kept, blocks[b].picks);
    }
  });
}

}  // namespace

void facility_location_greedy_blocked(const FeatureRows& features, const CoverageBlock* blocks, int64_t count,
                                      CpuLevel level) {
  for (int64_t first = 0, last = 0; first < count; first = last) {
    for (int64_t held = 0; last < count; ++last) {
      held += blocks[last].size * blocks[last].size;
      if (last > first && held > kHeldSimilarities) break;
    }
    run_batch(features, blocks + first, last - first, level);
  }
}

}  // namespace espalier::kernels
