// SPDX-License-Identifier: Apache-2.0
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <optional>
#include <string_view>
#include <vector>

#include "kernels/ops/attention_probe/attention_probe.h"
#include "kernels/ops/attention_probe/attention_probe_arguments.h"
#include "kernels/support/chosen_kernels.h"

namespace espalier::ops {
namespace {

at::Tensor attention_probe_cuda(const at::Tensor& query, const at::Tensor& key, const at::Tensor& lse,
                                const at::Tensor& rows, const at::Tensor& row_begin, const at::Tensor& columns,
                                const at::Tensor& column_begin, double scale, bool is_causal, std::string_view heads,
                                bool reduce_rows, int64_t window, const std::optional<at::Tensor>& position,
                                const std::optional<at::Tensor>& own_key) {
  const c10::cuda::CUDAGuard guard(query.device());
  const kernels::LayerPointers layer("attention_probe", query, key, lse);
  const kernels::GroupPointers groups("attention_probe", query, key, rows, row_begin, columns, column_begin, scale,
                                      is_causal, window, position, own_key);
  const kernels::ProbeHeads reduction = kernels::probe_heads("attention_probe", heads);
  TORCH_CHECK(reduce_rows || groups.shape.num_groups == 1,
              "attention_probe: rows can be kept apart for one group only, got ", groups.shape.num_groups, " groups");
  std::vector<int64_t> sizes;
  if (reduction == kernels::ProbeHeads::kEach) sizes.push_back(query.size(1));
  if (!reduce_rows) sizes.push_back(rows.size(0));
  sizes.push_back(columns.size(0));
  at::Tensor out = at::empty(sizes, lse.options());
  float* result = out.mutable_data_ptr<float>();
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const bool has_tiles = kernels::attention_probe_has_tiles(groups.shape);
  kernels::note_kernel("attention_probe", has_tiles ? "cuda_tiles" : "cuda");
  if (!has_tiles) {
    C10_CUDA_CHECK(kernels::attention_probe_cuda(layer.layer, groups.shape, reduction, reduce_rows, result, stream));
    return out;
  }
  const at::Tensor partials =
      at::empty({kernels::attention_probe_tiles_partial_floats(groups.shape, reduction, reduce_rows)}, lse.options());
  C10_CUDA_CHECK(kernels::attention_probe_tiles_cuda(layer.layer, groups.shape, reduction, reduce_rows,
                                                     partials.mutable_data_ptr<float>(), result, stream));
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CUDA, m) {
  m.impl("attention_probe", attention_probe_cuda);
}

}  // namespace espalier::ops
