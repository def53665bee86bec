// SPDX-License-Identifier: Apache-2.0
#include <ATen/core/Tensor.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "espalier/ops.h"
#include "kernels/ops/attention/attention.h"
#include "kernels/ops/attention/attention_arguments.h"
#include "kernels/support/chosen_kernels.h"
#include "kernels/support/dispatch.h"

namespace espalier::ops {
namespace {

using kernels::AttentionCudaBlock;
using kernels::AttentionCudaJoin;
using kernels::AttentionSequence;

// The bytes of an array, on the device. The copy is ordered on the stream; the host's memory is read before it returns.
template <typename T>
Tensor to_device(const std::vector<T>& values, at::Device device) {
  const int64_t bytes = static_cast<int64_t>(values.size() * sizeof(T));
  Tensor host = at::empty({bytes}, at::kByte);
  if (bytes > 0) std::memcpy(host.data_ptr(), values.data(), bytes);
  return host.to(device, at::kByte);
}

// The library's kernel on packed sequences: key_begin as offsets and key_length as lengths (`seqused_k`) leave slack
// rows unread.
std::tuple<Tensor, Tensor> attend_flash(const AttentionCall& in, const std::vector<AttentionSequence>& sequences) {
  std::vector<int32_t> query_begin{0}, key_begin, key_length;
  int64_t most_queries = 0, most_keys = 0;
  for (const AttentionSequence& s : sequences) {
    if (s.num_queries == 0) continue;
    query_begin.push_back(static_cast<int32_t>(s.query_begin + s.num_queries));
    key_begin.push_back(static_cast<int32_t>(s.key_begin));
    key_length.push_back(static_cast<int32_t>(s.num_keys));
    most_queries = std::max(most_queries, s.num_queries);
    most_keys = std::max(most_keys, s.num_keys);
  }
  key_begin.push_back(static_cast<int32_t>(in.key.size(0)));
  const auto with_contiguous_width = [](const Tensor& t) { return t.stride(2) == 1 ? t : t.contiguous(); };
  const at::Device device = in.query.device();
  const auto offsets = [&](const std::vector<int32_t>& values) { return to_device(values, device).view(at::kInt); };
  auto result = at::_flash_attention_forward(
      with_contiguous_width(in.query), with_contiguous_width(in.key), with_contiguous_width(in.value),
      offsets(query_begin), offsets(key_begin), most_queries, most_keys, /*dropout_p=*/0.0, in.is_causal,
      /*return_debug_mask=*/false, in.scale,
      /*window_size_left=*/std::nullopt, /*window_size_right=*/std::nullopt, offsets(key_length));
  return {std::get<0>(result).contiguous(), std::get<1>(result)};
}

// What the tiled kernel's thread blocks do. A sequence with few rows is cut along its keys, by itself alone.
struct TiledPlan {
  std::vector<AttentionCudaBlock> blocks;
  std::vector<AttentionCudaJoin> joins;
  int64_t num_partials = 0;

  TiledPlan(const std::vector<AttentionSequence>& sequences, int64_t ratio) {
    constexpr int64_t kSplitKeys = 256;
    for (const AttentionSequence& s : sequences) {
      const int64_t rows = s.num_queries * ratio;
      if (rows == 0) continue;
      if (rows > kernels::kAttentionCudaRows || s.num_keys <= kSplitKeys) {
        for (int64_t row = 0; row < rows; row += kernels::kAttentionCudaRows)
          blocks.push_back({s, row, 0, s.num_keys, -1});
        continue;
      }
      const int64_t parts = (s.num_keys + kSplitKeys - 1) / kSplitKeys;
      joins.push_back({s, num_partials, parts});
      for (int64_t part = 0; part < parts; ++part)
        blocks.push_back({s, 0, part * kSplitKeys, std::min((part + 1) * kSplitKeys, s.num_keys), num_partials++});
    }
  }
};

std::tuple<Tensor, Tensor> attend_tiled(const AttentionCall& in, const std::vector<AttentionSequence>& sequences) {
  TORCH_CHECK(in.query.size(2) <= kernels::kAttentionCudaMaxDim, "attention: heads wider than ",
              kernels::kAttentionCudaMaxDim, " have no CUDA kernel, got ", in.query.size(2));
  const AttentionTensors tensors(in);
  const at::Device device = in.query.device();
  const TiledPlan plan(sequences, in.query.size(1) / in.key.size(1));
  const Tensor blocks = to_device(plan.blocks, device), joins = to_device(plan.joins, device);
  const int64_t floats = kernels::attention_cuda_partial_floats(tensors.problem, plan.num_partials);
  const Tensor partials = at::empty({floats}, in.query.options().dtype(at::kFloat));
  C10_CUDA_CHECK(kernels::attention_cuda(
      tensors.problem, static_cast<const AttentionCudaBlock*>(blocks.const_data_ptr()),
      static_cast<int64_t>(plan.blocks.size()), static_cast<const AttentionCudaJoin*>(joins.const_data_ptr()),
      static_cast<int64_t>(plan.joins.size()), partials.data_ptr<float>(), c10::cuda::getCurrentCUDAStream()));
  return {tensors.output, tensors.lse};
}

std::tuple<Tensor, Tensor> attention_cuda(const AttentionCall& in) {
  check_attention(in);
  kernels::note_kernel("attention", attention_kernel_name(in));
  if (attention_needs_composed(in)) return attention_composed(in);
  const c10::cuda::CUDAGuard guard(in.query.device());
  const std::vector<AttentionSequence> sequences = attention_sequences(in);
  return attention_takes_flash(in) ? attend_flash(in, sequences) : attend_tiled(in, sequences);
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CUDA, m) {
  m.impl("attention", Unpacked<AttentionSignature, attention_cuda>::call);
}

}  // namespace espalier::ops
