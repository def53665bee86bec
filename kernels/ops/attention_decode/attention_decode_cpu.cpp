// SPDX-License-Identifier: Apache-2.0
// On the CPU lengths are at hand: these are attention's kernels, and its bits.
#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <torch/library.h>

#include "espalier/ops.h"
#include "kernels/ops/attention/attention.h"
#include "kernels/ops/attention_decode/attention_decode_arguments.h"
#include "kernels/support/chosen_kernels.h"
#include "kernels/support/dispatch.h"
#include "kernels/support/tensor_checks.h"

namespace espalier::ops {
namespace {

std::tuple<Tensor, Tensor> attention_decode_cpu(const AttentionDecodeCall& in) {
  check_attention_decode(in);
  const Tensor lengths = in.key_length.contiguous();
  for (int64_t s = 0; s < lengths.numel(); ++s) {
    const int64_t length = lengths.const_data_ptr<int64_t>()[s];
    TORCH_CHECK(length <= in.max_length, "attention_decode: sequence ", s, " has ", length,
                " keys, above max_length = ", in.max_length);
  }
  kernels::note_kernel(
      "attention_decode",
      kernels::attention_cpu_name(kernels::element_type(in.query, "attention_decode"), kernels::cpu_level()));
  return attention({.query = in.query,
                    .key = in.key,
                    .value = in.value,
                    .query_begin = at::arange(in.query.size(0) + 1, at::kLong),
                    .key_begin = in.key_begin.contiguous(),
                    .key_length = lengths,
                    .scale = in.scale,
                    .window = in.window,
                    .query_position = in.query_position,
                    .key_position = in.key_position});
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CPU, m) {
  m.impl("attention_decode", Unpacked<AttentionDecodeSignature, attention_decode_cpu>::call);
}

}  // namespace espalier::ops
