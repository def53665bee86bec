// SPDX-License-Identifier: Apache-2.0
// AdamW (Loshchilov, Hutter 2019) with decoupled weight decay and clipping by the global norm, on float32 masters.
// Knows nothing of what the parameters are.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace espalier {

struct AdamWOptions {
  double beta1 = 0.9;
  double beta2 = 0.98;
  double epsilon = 1e-8;
  double weight_decay = 0.05;  // of tensors with two or more dimensions: norms and biases are not decayed
  double max_norm = 1.0;       // of all gradients together; 0: no clipping
};

class AdamW {
 public:
  // Leaves that require a gradient; moments start at 0. `rate_factors`: of each leaf's learning rate; empty: all 1.
  AdamW(std::vector<at::Tensor> parameters, const AdamWOptions& options, std::vector<double> rate_factors = {});

  // One update from the gradients that the leaves hold (none counts as 0), which are cleared. Returns their norm before
  // clipping; when that is not finite nothing is changed.
  double step(double learning_rate);

  int64_t steps_done() const { return steps_done_; }
  const std::vector<at::Tensor>& first_moments() const { return first_moments_; }
  const std::vector<at::Tensor>& second_moments() const { return second_moments_; }
  // Of a saved run: copies the values in.
  void restore(const std::vector<at::Tensor>& first, const std::vector<at::Tensor>& second, int64_t steps_done);

 private:
  double gradient_norm() const;

  std::vector<at::Tensor> parameters_, first_moments_, second_moments_;
  AdamWOptions options_;
  std::vector<double> rate_factors_;
  int64_t steps_done_ = 0;
};

}  // namespace espalier
