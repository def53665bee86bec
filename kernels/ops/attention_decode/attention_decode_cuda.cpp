// SPDX-License-Identifier: Apache-2.0
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "espalier/ops.h"
#include "kernels/ops/attention_decode/attention_decode.h"
#include "kernels/ops/attention_decode/attention_decode_arguments.h"
#include "kernels/support/chosen_kernels.h"
#include "kernels/support/dispatch.h"
#include "kernels/support/tensor_checks.h"

namespace espalier::ops {
namespace {

using kernels::AttentionDecodeProblem;
using kernels::AttentionRows;

std::tuple<Tensor, Tensor> attention_decode_cuda(const AttentionDecodeCall& in) {
  check_attention_decode(in);
  const Tensor& query = in.query;
  TORCH_CHECK(query.size(2) <= kernels::kAttentionCudaMaxDim, "attention_decode: heads wider than ",
              kernels::kAttentionCudaMaxDim, " have no CUDA kernel, got ", query.size(2));
  const c10::cuda::CUDAGuard guard(query.device());
  kernels::note_kernel("attention_decode", "cuda");
  const auto with_contiguous_width = [](const Tensor& t) { return t.stride(2) == 1 ? t : t.contiguous(); };
  const Tensor q = with_contiguous_width(query), k = with_contiguous_width(in.key), v = with_contiguous_width(in.value);
  const Tensor begins = in.key_begin.contiguous(), lengths = in.key_length.contiguous();
  const Tensor query_positions = in.window > 0 ? in.query_position->contiguous() : Tensor(),
               key_positions = in.window > 0 ? in.key_position->contiguous() : Tensor();
  Tensor out = at::empty(query.sizes(), query.options());
  Tensor lse = at::empty({query.size(1), query.size(0)}, query.options().dtype(at::kFloat));
  const auto rows = [](const Tensor& t) { return AttentionRows{t.const_data_ptr(), t.stride(0), t.stride(1)}; };
  const AttentionDecodeProblem problem{
      .query = rows(q),
      .key = rows(k),
      .value = rows(v),
      .output = out.mutable_data_ptr(),
      .lse = lse.mutable_data_ptr<float>(),
      .key_begin = begins.const_data_ptr<int64_t>(),
      .key_length = lengths.const_data_ptr<int64_t>(),
      .query_position = in.window > 0 ? query_positions.const_data_ptr<int64_t>() : nullptr,
      .key_position = in.window > 0 ? key_positions.const_data_ptr<int64_t>() : nullptr,
      .num_sequences = q.size(0),
      .max_length = in.max_length,
      .num_heads = q.size(1),
      .num_kv_heads = k.size(1),
      .head_dim = q.size(2),
      .window = in.window,
      .scale = static_cast<float>(in.scale),
      .dtype = kernels::element_type(query, "attention_decode")};
  const Tensor partials =
      at::empty({kernels::attention_decode_cuda_partial_floats(problem)}, query.options().dtype(at::kFloat));
  C10_CUDA_CHECK(
      kernels::attention_decode_cuda(problem, partials.mutable_data_ptr<float>(), c10::cuda::getCurrentCUDAStream()));
  return {out, lse};
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CUDA, m) {
  m.impl("attention_decode", Unpacked<AttentionDecodeSignature, attention_decode_cuda>::call);
}

}  // namespace espalier::ops
