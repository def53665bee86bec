// SPDX-License-Identifier: Apache-2.0
// Tensors to and from safetensors files in tests.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "base/safetensors.h"

namespace espalier::test {

using Arrays = std::map<std::string, at::Tensor>;

inline at::ScalarType scalar_type_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::kF32:
      return at::kFloat;
    case Dtype::kF16:
      return at::kHalf;
    case Dtype::kBF16:
      return at::kBFloat16;
    case Dtype::kI64:
      return at::kLong;
    default:
      ADD_FAILURE() << "no test needs " << name_of(dtype);
      return at::kByte;
  }
}

inline Dtype dtype_of(const at::Tensor& t) {
  switch (t.scalar_type()) {
    case at::kHalf:
      return Dtype::kF16;
    case at::kBFloat16:
      return Dtype::kBF16;
    case at::kDouble:
      return Dtype::kF64;
    case at::kLong:
      return Dtype::kI64;
    default:
      return Dtype::kF32;
  }
}

inline at::Tensor tensor_of(const TensorView& view) {
  at::Tensor t = at::empty(view.shape, scalar_type_of(view.dtype));
  if (!view.bytes.empty()) std::memcpy(t.data_ptr(), view.bytes.data(), view.bytes.size());
  return t;
}

inline Arrays read_arrays(const std::filesystem::path& file) {
  Arrays arrays;
  const SafetensorsFile opened = SafetensorsFile::open(file);
  for (const auto& [name, view] : opened.tensors()) arrays[name] = tensor_of(view);
  return arrays;
}

inline void write_arrays(const std::filesystem::path& file, const Arrays& arrays) {
  std::vector<at::Tensor> kept;
  std::vector<TensorToWrite> tensors;
  for (const auto& [name, t] : arrays) {
    kept.push_back(t.contiguous());
    tensors.push_back({name, dtype_of(t), t.sizes().vec(), kept.back().data_ptr()});
  }
  write_safetensors(file, tensors);
}

struct RelativeError {
  double max, rms;
};

// Largest and rms difference, relative to the golden's rms.
inline RelativeError relative_error(const at::Tensor& mine, const at::Tensor& golden) {
  const at::Tensor g = golden.to(at::kDouble), d = (mine.to(at::kDouble) - g).abs();
  const double rms = std::max(g.pow(2).mean().sqrt().item<double>(), 1e-12);
  return {d.max().item<double>() / rms, d.pow(2).mean().sqrt().item<double>() / rms};
}

}  // namespace espalier::test
