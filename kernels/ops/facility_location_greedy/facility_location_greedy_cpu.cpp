// SPDX-License-Identifier: Apache-2.0
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <string_view>
#include <vector>

#include "kernels/ops/facility_location_greedy/facility_location_greedy.h"
#include "kernels/ops/facility_location_greedy/facility_location_greedy_arguments.h"
#include "kernels/support/choice_names.h"
#include "kernels/support/chosen_kernels.h"
#include "kernels/support/tensor_checks.h"

namespace espalier::kernels {

namespace {

double cosine(const double* a, const double* b, int64_t d) {
  double dot = 0.0, aa = 0.0, bb = 0.0;
  for (int64_t i = 0; i < d; ++i) {
    dot += a[i] * b[i];
    aa += a[i] * a[i];
    bb += b[i] * b[i];
  }
  return std::sqrt(aa) < 1e-12 || std::sqrt(bb) < 1e-12 ? 0.0 : dot / std::sqrt(aa * bb);
}

// [size, size]
std::vector<double> similarity_matrix(const double* features, int64_t size, int64_t d, ops::Similarity map) {
  std::vector<double> sim(size * size);
  for (int64_t x = 0; x < size; ++x) {
    for (int64_t y = 0; y < size; ++y) sim[x * size + y] = cosine(features + x * d, features + y * d, d);
  }
  if (sim.empty()) return sim;
  const auto [low, high] = std::minmax_element(sim.begin(), sim.end());
  const double smallest = *low, range = *high - *low;
  for (double& s : sim) {
    if (map == ops::Similarity::kAffine) s = (1.0 + s) / 2.0;
    if (map == ops::Similarity::kClamp) s = std::max(s, 0.0);
    if (map == ops::Similarity::kMinmax) s = range < 1e-12 ? 0.5 : (s - smallest) / range;
  }
  return sim;
}

}  // namespace

void facility_location_greedy_plain(const double* features, int64_t size, int64_t d, int64_t num_kept,
                                    const CoverageObjective& objective, int64_t* picks, double* gains) {
  const std::vector<double> sim = similarity_matrix(features, size, d, objective.map);
  std::vector<double> cover(size, 0.0), gain(size);
  std::vector<bool> is_picked(size, false);
  for (int64_t step = 0; step < num_kept; ++step) {
    int64_t pick = -1;
    double largest = -std::numeric_limits<double>::infinity();
    for (int64_t j = 0; j < size; ++j) {
      gain[j] = 0.0;
      for (int64_t x = 0; x < size; ++x) gain[j] += std::max(0.0, sim[x * size + j] - cover[x]);
      gain[j] = objective.coverage_scale * gain[j] + (objective.modular == nullptr ? 0.0 : objective.modular[j]);
      if (!is_picked[j]) largest = std::max(largest, gain[j]);
    }
    for (int64_t j = size - 1; j >= 0; --j) {
      if (!is_picked[j] && gain[j] >= largest - kGainTie) pick = j;
    }
    for (int64_t j = size - 1; j >= 0; --j) {
      if (objective.forced != nullptr && objective.forced[j] && !is_picked[j]) pick = j;
    }
    is_picked[pick] = true;
    picks[step] = pick;
    if (gains != nullptr) gains[step] = gain[pick];
    for (int64_t x = 0; x < size; ++x) cover[x] = std::max(cover[x], sim[x * size + pick]);
  }
}

}  // namespace espalier::kernels

namespace espalier::ops {

namespace {

at::Tensor facility_location_greedy_cpu(const at::Tensor& features_in, const at::Tensor& block_begin_in,
                                        const at::Tensor& num_kept_in, std::string_view similarity,
                                        double coverage_scale, const std::optional<at::Tensor>& modular_in,
                                        const std::optional<at::Tensor>& forced_in) {
  const auto map = choice_named<Similarity>(similarity);
  const int64_t total =
      kernels::check_facility_location_greedy(features_in, block_begin_in, num_kept_in, modular_in, forced_in);
  const at::Tensor features = features_in.stride(1) == 1 ? features_in : features_in.contiguous();
  const at::Tensor block_begin = block_begin_in.contiguous(), num_kept = num_kept_in.contiguous();
  const at::Tensor modular = modular_in.has_value() && modular_in->defined() ? modular_in->contiguous() : at::Tensor();
  const at::Tensor forced = forced_in.has_value() && forced_in->defined() ? forced_in->contiguous() : at::Tensor();
  at::Tensor out = at::empty({total}, features.options().dtype(at::kLong));
  std::vector<kernels::CoverageBlock> blocks;
  int64_t* picks = out.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < num_kept.numel(); ++i) {
    const int64_t begin = block_begin.const_data_ptr<int64_t>()[i],
                  size = block_begin.const_data_ptr<int64_t>()[i + 1] - begin;
    kernels::CoverageBlock block{begin, size, num_kept.const_data_ptr<int64_t>()[i], {map, coverage_scale}, picks};
    if (modular.defined()) block.objective.modular = modular.const_data_ptr<float>() + begin;
    if (forced.defined()) block.objective.forced = forced.const_data_ptr<bool>() + begin;
    picks += block.num_kept;
    if (block.num_kept > 0) blocks.push_back(block);
  }
  kernels::note_kernel(
      "facility_location_greedy",
      kernels::panel_kernel_name(kernels::cpu_level(), kernels::element_type(features, "facility_location_greedy")));
  kernels::facility_location_greedy_blocked({features.const_data_ptr(), features.stride(0), features.size(1),
                                             kernels::element_type(features, "facility_location_greedy")},
                                            blocks.data(), static_cast<int64_t>(blocks.size()), kernels::cpu_level());
  for (const kernels::CoverageBlock& block : blocks) {
    for (int64_t k = 0; k < block.num_kept; ++k) block.picks[k] += block.begin;
  }
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CPU, m) {
  m.impl("facility_location_greedy", facility_location_greedy_cpu);
}

}  // namespace espalier::ops
