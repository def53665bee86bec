// SPDX-License-Identifier: Apache-2.0
// The arithmetic of an ATP module as functions of tensors (docs/specs/atp_llava.md, sections 2-4): no layout, no
// policy, no state. All are differentiable where the method is, so that training and inference run the same code;
// autograd comes from the ATen operators. Scores are those of one crop, [m] tokens in raster order.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>

#include "espalier/policies/atp.h"

namespace espalier {

// S_spa of every place of a grid, float32 [rows·cols], raster order: for the sparsest stride that samples a place, 1 -
// lambda_sample / stride²; 0 where none does.
at::Tensor atp_spatial_score(GridSize grid, std::span<const int64_t> strides, double lambda_sample);

// S_red: the mean of both scores, then normalised over the tokens of `in_range` (bool [m]; undefined: all), the others
// clipped to [0, 1]. Equal scores become 0.5 (but for kNone and kSigmoid).
at::Tensor atp_redundancy_score(const at::Tensor& self, const at::Tensor& cross, AtpNorm norm,
                                const at::Tensor& in_range = {});

// Width of what the head reads.
int64_t atp_head_width(AtpHeadInput input, GridSize grid);
// What the head reads, [inputs]: the raw scores at their places (int64 [m]) in the grid, zeros elsewhere; their means;
// or each scattered and averaged to 256 bins. `present` [m] (undefined: all are): the soft masks so far, by which means
// count what training only hides.
at::Tensor atp_head_input(const at::Tensor& self, const at::Tensor& cross, const at::Tensor& places, GridSize grid,
                          AtpHeadInput input, const at::Tensor& present = {});

struct AtpThresholds {
  at::Tensor redundancy, spatial;  // scalars
};
AtpThresholds atp_thresholds(const AtpModule& module, AtpActivation activation, const at::Tensor& head_input);

// max(sigmoid((S_red - theta_r)·T), sigmoid((S_spa - theta_s)·T)), [m]; on a tie the gradient goes to the first.
at::Tensor atp_soft_mask(const at::Tensor& redundancy, const at::Tensor& spatial, const AtpThresholds& thresholds,
                         double temperature, AtpStrategy strategy = AtpStrategy::kBoth);

// S_red > theta_r or S_spa > theta_s, bool [m]; of fewer than min_keep, the best others by S_red join (lower index
// first). Waits for no device.
at::Tensor atp_hard_keep(const at::Tensor& redundancy, const at::Tensor& spatial, const AtpThresholds& thresholds,
                         int64_t min_keep, AtpStrategy strategy = AtpStrategy::kBoth);

}  // namespace espalier
