// SPDX-License-Identifier: Apache-2.0
#include "tests/support/tensors.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <cmath>
#include <sstream>

namespace espalier::test {

at::Tensor random_tensor(at::IntArrayRef sizes, at::ScalarType dtype, uint64_t seed) {
  return at::randn(sizes, at::detail::createCPUGenerator(seed), at::TensorOptions().dtype(at::kFloat)).to(dtype);
}

at::Tensor int64_tensor(const std::vector<int64_t>& values) {
  return at::tensor(values, at::kLong);
}

std::vector<double> to_doubles(const at::Tensor& t) {
  const at::Tensor flat = t.detach().to(at::kCPU, at::kDouble).contiguous();
  return {flat.const_data_ptr<double>(), flat.const_data_ptr<double>() + flat.numel()};
}

namespace {

std::string index_text(int64_t flat, at::IntArrayRef sizes) {
  std::string text;
  for (auto size = sizes.rbegin(); size != sizes.rend(); flat /= *size++)
    text = std::to_string(flat % *size) + (text.empty() ? "" : ", ") + text;
  return "[" + text + "]";
}

double error_of(double actual, double expected) {
  if (actual == expected || (std::isnan(actual) && std::isnan(expected))) return 0.0;
  const double error = std::abs(actual - expected);
  return std::isnan(error) ? INFINITY : error;
}

void compare(const std::vector<double>& actual, const std::vector<double>& expected, at::IntArrayRef sizes,
             double tolerance, const std::string& what) {
  double worst_excess = 0.0;
  double largest_error = 0.0;
  size_t worst = 0;
  size_t differing = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double error = error_of(actual[i], expected[i]);
    const double excess = error == 0.0 ? 0.0 : error - tolerance * (1.0 + std::abs(expected[i]));
    largest_error = std::max(largest_error, error);
    if (!(excess > 0.0) && !std::isnan(excess)) continue;
    if (differing++ == 0 || excess > worst_excess) {
      worst = i;
      worst_excess = excess;
    }
  }
  if (differing == 0) return;
  ADD_FAILURE() << what << (what.empty() ? "" : ": ") << "at " << index_text(static_cast<int64_t>(worst), sizes)
                << " of " << sizes << " got " << actual[worst] << ", expected " << expected[worst] << "; largest error "
                << largest_error << ", " << differing << " of " << actual.size() << " elements beyond tolerance "
                << tolerance;
}

}  // namespace

void expect_close(const at::Tensor& actual, const at::Tensor& expected, double tolerance, const std::string& what) {
  ASSERT_EQ(actual.sizes(), expected.sizes()) << what;
  compare(to_doubles(actual), to_doubles(expected), actual.sizes(), tolerance, what);
}

void expect_close(const at::Tensor& actual, const std::vector<double>& expected, double tolerance,
                  const std::string& what) {
  ASSERT_EQ(static_cast<size_t>(actual.numel()), expected.size()) << what;
  compare(to_doubles(actual), expected, actual.sizes(), tolerance, what);
}

void expect_same(const at::Tensor& actual, const at::Tensor& expected, const std::string& what) {
  ASSERT_EQ(actual.scalar_type(), expected.scalar_type()) << what;
  expect_close(actual, expected, 0.0, what);
}

namespace {

// sum over all outputs of output · a fixed random weight.
at::Tensor weighted_sum(const std::vector<at::Tensor>& outputs) {
  at::Tensor total;
  for (size_t i = 0; i < outputs.size(); ++i) {
    const at::Tensor weight = random_tensor(outputs[i].sizes(), at::kDouble, 1000 + i);
    const at::Tensor part = (outputs[i] * weight).sum();
    total = total.defined() ? total + part : part;
  }
  return total;
}

double evaluate(const Function& f, const std::vector<at::Tensor>& inputs) {
  const c10::NoGradGuard no_grad;
  return weighted_sum(f(inputs)).item<double>();
}

}  // namespace

void expect_gradients_match(const Function& f, const std::vector<at::Tensor>& inputs, double tolerance) {
  constexpr double kStep = 1e-5;
  std::vector<at::Tensor> leaves;
  for (const at::Tensor& input : inputs) {
    ASSERT_EQ(input.scalar_type(), at::kDouble);
    leaves.push_back(input.detach().clone().contiguous().set_requires_grad(true));
  }
  weighted_sum(f(leaves)).backward();
  for (size_t i = 0; i < leaves.size(); ++i) {
    ASSERT_TRUE(leaves[i].grad().defined()) << "input " << i << " got no gradient";
    auto* element = leaves[i].mutable_data_ptr<double>();
    std::vector<double> differences(static_cast<size_t>(leaves[i].numel()));
    for (double& difference : differences) {
      const double kept = *element;
      *element = kept + kStep;
      const double above = evaluate(f, leaves);
      *element = kept - kStep;
      difference = (above - evaluate(f, leaves)) / (2.0 * kStep);
      *element++ = kept;
    }
    expect_close(leaves[i].grad(), differences, tolerance, "gradient of input " + std::to_string(i));
  }
}

}  // namespace espalier::test
