// SPDX-License-Identifier: Apache-2.0
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <vector>

#include "kernels/ops/greedy_dpp/greedy_dpp.h"
#include "kernels/ops/greedy_dpp/greedy_dpp_arguments.h"
#include "kernels/support/chosen_kernels.h"
#include "kernels/support/cosine_matrix.h"

namespace espalier::kernels {

namespace {

constexpr double kNever = -INFINITY;

// Incremental Cholesky factorisation of L with the pivot of the largest residual. The factor is kept in double: each
// residual is what many subtractions leave.
template <typename T>
class Choice {
 public:
  // cosine [size, size]
  Choice(const T* cosine, const float* relevance, int64_t size)
      : cosine_(cosine), size_(size), relevance_(relevance, relevance + size), residual_(size) {
    for (float& r : relevance_) r = std::isfinite(r) ? r : 0.0F;
    for (int64_t i = 0; i < size; ++i) {
      residual_[i] = double{relevance_[i]} * relevance_[i] * cosine[i * size + i];
      smallest_ = std::max(smallest_, kSmallestResidual * residual_[i]);
    }
  }

  void run(int64_t num_kept, const bool* forced, int64_t* picks, double* residuals) {
    int64_t step = 0;
    const auto take = [&](int64_t pick) {
      if (residuals != nullptr) residuals[step] = residual_[pick] > smallest_ ? residual_[pick] : 0.0;
      picks[step] = pick;
      if (residual_[pick] > smallest_) factorise(pick);
      residual_[pick] = kNever;
    };
    for (int64_t i = 0; forced != nullptr && i < size_ && step < num_kept; ++i)
      if (forced[i]) {
        take(i);
        ++step;
      }
    for (; step < num_kept; ++step) {
      const int64_t best = std::max_element(residual_.begin(), residual_.end()) - residual_.begin();
      take(residual_[best] > smallest_ ? best : most_relevant());
    }
  }

 private:
  int64_t most_relevant() const {
    int64_t best = -1;
    for (int64_t i = 0; i < size_; ++i)
      if (residual_[i] != kNever && (best < 0 || relevance_[i] > relevance_[best])) best = i;
    return best;
  }

  // One more row of the factor, e = (L[pick] - sum of c_v[pick] · c_v) / root of the pick's residual.
  void factorise(int64_t pick) {
    std::vector<double> row(size_);
    for (int64_t i = 0; i < size_; ++i) row[i] = double{relevance_[pick]} * relevance_[i] * cosine_[pick * size_ + i];
    for (const std::vector<double>& before : factor_) {
      const double weight = before[pick];
      for (int64_t i = 0; i < size_; ++i) row[i] -= weight * before[i];
    }
    const double scale = 1.0 / std::sqrt(residual_[pick]);
    for (int64_t i = 0; i < size_; ++i) {
      row[i] *= scale;
      residual_[i] -= row[i] * row[i];
    }
    factor_.push_back(std::move(row));
  }

  const T* cosine_;
  int64_t size_;
  std::vector<float> relevance_;
  std::vector<double> residual_;  // kNever: picked
  std::vector<std::vector<double>> factor_;
  double smallest_ = 0.0;
};

}  // namespace

void greedy_dpp_plain(const double* features, const float* relevance, int64_t size, int64_t d, int64_t num_kept,
                      const bool* forced, int64_t* picks, double* residuals) {
  std::vector<double> cosine(size * size), norm(size);
  const auto dot = [&](int64_t i, int64_t j) {
    double sum = 0.0;
    for (int64_t c = 0; c < d; ++c) sum += features[i * d + c] * features[j * d + c];
    return sum;
  };
  for (int64_t i = 0; i < size; ++i) norm[i] = dot(i, i);
  for (int64_t i = 0; i < size; ++i)
    for (int64_t j = 0; j < size; ++j) {
      const bool is_short = norm[i] < 1e-24 || norm[j] < 1e-24;
      cosine[i * size + j] = is_short ? 0.0 : i == j ? 1.0 : dot(i, j) / std::sqrt(norm[i] * norm[j]);
    }
  Choice<double>(cosine.data(), relevance, size).run(num_kept, forced, picks, residuals);
}

void greedy_dpp_blocked(const FeatureRows& features, const DppBlock* blocks, int64_t count, CpuLevel level) {
  for (int64_t b = 0; b < count; ++b) {
    const DppBlock& block = blocks[b];
    const std::unique_ptr<float[]> cosine(new float[block.size * block.size]);
    cosine_matrix(features, block.begin, block.size, level, cosine.get());
    Choice<float>(cosine.get(), block.relevance, block.size).run(block.num_kept, block.forced, block.picks, nullptr);
  }
}

}  // namespace espalier::kernels

namespace espalier::ops {

namespace {

at::Tensor greedy_dpp_cpu(const at::Tensor& features_in, const at::Tensor& relevance_in,
                          const at::Tensor& block_begin_in, const at::Tensor& num_kept_in,
                          const std::optional<at::Tensor>& forced_in) {
  const int64_t total = kernels::check_greedy_dpp(features_in, relevance_in, block_begin_in, num_kept_in, forced_in);
  const at::Tensor features = features_in.stride(1) == 1 ? features_in : features_in.contiguous();
  const at::Tensor relevance = relevance_in.contiguous();
  const at::Tensor block_begin = block_begin_in.contiguous(), num_kept = num_kept_in.contiguous();
  const at::Tensor forced = forced_in.has_value() && forced_in->defined() ? forced_in->contiguous() : at::Tensor();
  at::Tensor out = at::empty({total}, features.options().dtype(at::kLong));
  std::vector<kernels::DppBlock> blocks;
  int64_t* picks = out.mutable_data_ptr<int64_t>();
  const int64_t* begins = block_begin.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < num_kept.numel(); ++i) {
    const int64_t kept = num_kept.const_data_ptr<int64_t>()[i];
    if (kept > 0)
      blocks.push_back({begins[i], begins[i + 1] - begins[i], kept, relevance.const_data_ptr<float>() + begins[i],
                        forced.defined() ? forced.const_data_ptr<bool>() + begins[i] : nullptr, picks});
    picks += kept;
  }
  kernels::note_kernel("greedy_dpp",
                       kernels::panel_kernel_name(kernels::cpu_level(), kernels::element_type(features, "greedy_dpp")));
  kernels::greedy_dpp_blocked(
      {features.const_data_ptr(), features.stride(0), features.size(1), kernels::element_type(features, "greedy_dpp")},
      blocks.data(), static_cast<int64_t>(blocks.size()), kernels::cpu_level());
  for (const kernels::DppBlock& block : blocks)
    for (int64_t k = 0; k < block.num_kept; ++k) block.picks[k] += block.begin;
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CPU, m) {
  m.impl("greedy_dpp", greedy_dpp_cpu);
}

}  // namespace espalier::ops
