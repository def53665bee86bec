// SPDX-License-Identifier: Apache-2.0
#include "training/adamw.h"

#include <torch/types.h>

#include <algorithm>
#include <cmath>

namespace espalier {

AdamW::AdamW(std::vector<at::Tensor> parameters, const AdamWOptions& options, std::vector<double> rate_factors)
    : parameters_(std::move(parameters)), options_(options), rate_factors_(std::move(rate_factors)) {
  rate_factors_.resize(parameters_.size(), 1.0);
  for (const at::Tensor& p : parameters_) {
    first_moments_.push_back(torch::zeros_like(p, p.options().requires_grad(false)));
    second_moments_.push_back(torch::zeros_like(p, p.options().requires_grad(false)));
  }
}

double AdamW::gradient_norm() const {
  double sum = 0;
  for (const at::Tensor& p : parameters_)
    if (p.grad().defined()) sum += std::pow(p.grad().norm().item<double>(), 2);
  return std::sqrt(sum);
}

double AdamW::step(double learning_rate) {
  const torch::NoGradGuard no_gradients;
  const double norm = gradient_norm();
  if (!std::isfinite(norm)) return norm;
  const double shrink = options_.max_norm > 0 ? std::min(1.0, options_.max_norm / (norm + 1e-6)) : 1.0;
  ++steps_done_;
  const double correction1 = 1 - std::pow(options_.beta1, steps_done_),
               correction2 = 1 - std::pow(options_.beta2, steps_done_);
  for (size_t i = 0; i < parameters_.size(); ++i) {
    at::Tensor& p = parameters_[i];
    at::Tensor &m = first_moments_[i], &v = second_moments_[i];
    if (!p.grad().defined()) p.mutable_grad() = torch::zeros_like(p);
    const at::Tensor g = p.grad().mul_(shrink);
    m.mul_(options_.beta1).add_(g, 1 - options_.beta1);
    v.mul_(options_.beta2).addcmul_(g, g, 1 - options_.beta2);
    const double rate = learning_rate * rate_factors_[i];
    if (p.dim() >= 2) p.mul_(1 - rate * options_.weight_decay);
    p.addcdiv_(m, v.sqrt().div_(std::sqrt(correction2)).add_(options_.epsilon), -rate / correction1);
    p.mutable_grad() = at::Tensor();
  }
  return norm;
}

void AdamW::restore(const std::vector<at::Tensor>& first, const std::vector<at::Tensor>& second, int64_t steps_done) {
  const torch::NoGradGuard no_gradients;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    first_moments_[i].copy_(first[i]);
    second_moments_[i].copy_(second[i]);
  }
  steps_done_ = steps_done;
}

}  // namespace espalier
