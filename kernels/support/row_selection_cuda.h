// SPDX-License-Identifier: Apache-2.0
// What the greedy selections on CUDA share on the ATen side: which rows a thread block chooses from, where it puts its
// picks, and how many blocks one launch takes. What a block reads beside that is the op's own.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <numeric>
#include <optional>
#include <vector>

namespace espalier::kernels {

// A block of rows that keeps some. Pointers are on the device.
struct SelectionRows {
  int64_t begin, size, num_kept;
  const bool* forced;  // [size] or null
  bool* is_picked;     // [size], for the kernel to use
  int64_t* picks;      // [num_kept]
};

// -> int64 [sum of num_kept]. `describe(rows, owned)` makes the kernel's own struct, an element of Blocks::block, and
// puts tensors that it points into and nobody else holds behind `owned`; launch(blocks, count, stream) gives up to
// Blocks::kMaxBlocks of them to the kernel. Arguments are checked already. The host waits for nothing.
template <typename Blocks, typename Describe, typename Launch>
at::Tensor select_rows_cuda(const at::Tensor& features, const at::Tensor& block_begin, const at::Tensor& num_kept,
                            const std::optional<at::Tensor>& forced, const Describe& describe, const Launch& launch) {
  const at::Tensor begins = block_begin.contiguous(), counts = num_kept.contiguous();
  const at::Tensor always = forced.has_value() && forced->defined() ? forced->contiguous() : at::Tensor();
  const int64_t* begin = begins.const_data_ptr<int64_t>();
  const int64_t* kept = counts.const_data_ptr<int64_t>();
  const int64_t total = std::accumulate(kept, kept + counts.numel(), int64_t{0});
  at::Tensor out = at::empty({total}, features.options().dtype(at::kLong));
  at::Tensor is_picked = at::empty({features.size(0)}, features.options().dtype(at::kBool));
  int64_t* picks = out.mutable_data_ptr<int64_t>();
  for (int64_t next = 0; next < counts.numel();) {
    Blocks blocks{};
    std::vector<at::Tensor> owned;
    int64_t count = 0;
    for (; next < counts.numel() && count < Blocks::kMaxBlocks; ++next) {
      if (kept[next] == 0) continue;
      const SelectionRows rows{.begin = begin[next],
                               .size = begin[next + 1] - begin[next],
                               .num_kept = kept[next],
                               .forced = always.defined() ? always.const_data_ptr<bool>() + begin[next] : nullptr,
                               .is_picked = is_picked.mutable_data_ptr<bool>() + begin[next],
                               .picks = picks};
      blocks.block[count++] = describe(rows, owned);
      picks += kept[next];
    }
    C10_CUDA_CHECK(launch(blocks, count, c10::cuda::getCurrentCUDAStream()));
  }
  return out;
}

}  // namespace espalier::kernels
