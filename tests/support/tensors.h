// SPDX-License-Identifier: Apache-2.0
// Tensors in tests: making them, comparing them, and checking gradients. Not for the library.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <vector>

namespace espalier::test {

// Standard normal, on the CPU, the same for the same seed.
at::Tensor random_tensor(at::IntArrayRef sizes, at::ScalarType dtype = at::kFloat, uint64_t seed = 0);

// int64 [values], on the CPU.
at::Tensor int64_tensor(const std::vector<int64_t>& values);

// The elements in row-major order as float64, for oracles in plain loops.
std::vector<double> to_doubles(const at::Tensor& t);

// Passes when the shapes agree and each |actual - expected| <= tolerance · (1 + |expected|); NaN equals NaN. Compares
// in float64 on the CPU, whatever the dtypes and devices. A failure prints the worst index, both values, the largest
// error and how many elements differ.
void expect_close(const at::Tensor& actual, const at::Tensor& expected, double tolerance, const std::string& what = "");

// The same against an oracle's elements in row-major order.
void expect_close(const at::Tensor& actual, const std::vector<double>& expected, double tolerance,
                  const std::string& what = "");

// Same shape and the same elements, bit for bit but for NaN.
void expect_same(const at::Tensor& actual, const at::Tensor& expected, const std::string& what = "");

// Compares the gradients of f with central differences. `inputs` are float64 on the CPU, each differentiated in full;
// several outputs are weighted with fixed random numbers, so that no error cancels.
using Function = std::function<std::vector<at::Tensor>(const std::vector<at::Tensor>&)>;
void expect_gradients_match(const Function& f, const std::vector<at::Tensor>& inputs, double tolerance = 1e-6);

}  // namespace espalier::test
