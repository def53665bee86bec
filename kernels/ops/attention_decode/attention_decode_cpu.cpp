// SPDX-License-Identifier: Apache-2.0
// On the CPU lengths are at hand: these are attention's kernels, and its bits.
#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <torch/library.h>

#include "espalier/ops.h"
#include "kernels/ops/attention/attention.h"
#include "kernels/ops/attention_decode/attention_decode_arguments.h"
#include "kernels/support/chosen_kernels.h"
#include "kernels/support/tensor_checks.h"

namespace espalier::ops {
namespace {

std::tuple<Tensor, Tensor> attention_decode_cpu(const Tensor& query, const Tensor& key, const Tensor& value,
                                                const Tensor& key_begin, const Tensor& key_length, int64_t max_length,
                                                double scale, int64_t window, const OptionalTensor& query_position,
                                                const OptionalTensor& key_position) {
  check_attention_decode(
      {query, key, value, key_begin, key_length, max_length, scale, window, query_position, key_position});
  const Tensor begins = key_begin.contiguous(), lengths = key_length.contiguous();
  for (int64_t s = 0; s < lengths.numel(); ++s) {
    const int64_t length = lengths.const_data_ptr<int64_t>()[s];
    TORCH_CHECK(length <= max_length, "attention_decode: sequence ", s, " has ", length,
                " keys, above max_length = ", max_length);
  }
  kernels::note_kernel("attention_decode", kernels::attention_cpu_name(kernels::element_type(query, "attention_decode"),
                                                                       kernels::cpu_level()));
  return attention(query, key, value, at::arange(query.size(0) + 1, at::kLong), begins, lengths, scale,
                   /*is_causal=*/true, window, query_position, key_position);
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CPU, m) {
  m.impl("attention_decode", attention_decode_cpu);
}

}  // namespace espalier::ops
