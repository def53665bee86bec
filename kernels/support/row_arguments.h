// SPDX-License-Identifier: Apache-2.0
// Argument checks shared by the ops that read chosen rows (attention_probe, attention_growth, cosine_score,
// facility_location_greedy).
#pragma once

#include <ATen/core/Tensor.h>

#include "kernels/support/tensor_checks.h"

namespace espalier::kernels {

// Every value of index (int64, on the CPU) lies in [0, size). Not done on a GPU: reading the values would stop the
// stream.
inline void check_rows_in_range(const char* op, const at::Tensor& index, int64_t size) {
  const at::Tensor values = index.contiguous();
  check_index_range(values.const_data_ptr<int64_t>(), values.numel(), size, op);
}

// begin (int64 [count + 1], on the CPU) ascends within 0 .. size. A meta tensor has no values to look at.
inline void check_offsets(const char* op, const char* name, const at::Tensor& begin, int64_t size) {
  const bool is_placed = begin.device().is_cpu() || begin.is_meta();
  TORCH_CHECK(is_placed && begin.scalar_type() == at::kLong && begin.dim() == 1 && begin.numel() >= 1, op, ": ", name,
              " must be int64 [count + 1] on the CPU, got ", begin.scalar_type(), " ", begin.sizes(), " on ",
              begin.device());
  if (begin.is_meta()) return;
  const at::Tensor values = begin.contiguous();
  const int64_t* data = values.const_data_ptr<int64_t>();
  bool ascending = data[0] >= 0 && data[begin.numel() - 1] <= size;
  for (int64_t i = 1; i < begin.numel(); ++i) ascending = ascending && data[i - 1] <= data[i];
  TORCH_CHECK(ascending, op, ": ", name, " must ascend within 0 .. ", size, ", got ", values);
}

}  // namespace espalier::kernels
