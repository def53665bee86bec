// SPDX-License-Identifier: Apache-2.0
// Weighted means of groups of rows below the dispatcher: the check that every backend makes, and the loops and
// launchers on raw pointers.
#pragma once

#include <cstdint>
#include <optional>

#include "kernels/element_type.h"

#ifdef ESPALIER_HAS_CUDA
#include <cuda_runtime_api.h>
#endif

namespace at {
class Tensor;
}

namespace espalier::kernels {

// Throws unless x is [n, d], index int64 [r], group_begin int64 [k + 1] and weight, if any, float32 [r] (float64 beside
// a float64 x), all on one device. What index and group_begin hold is checked by the backends.
void check_merge_tokens(const at::Tensor& x, const at::Tensor& index, const at::Tensor& group_begin,
                        const std::optional<at::Tensor>& weight);

struct MergeGroups {
  const int64_t* index;        // [r]
  const int64_t* group_begin;  // [k + 1]
  const float* weight;         // [r], or null: all ones
};

// Rows of d elements that begin `stride` elements apart.
struct MergeShape {
  int64_t d, stride;
};

// out[i] for groups i in [begin, end), out [k, d] contiguous; sums in float32, in the order of `index`. sum: room for d
// floats.
template <typename T>
void merge_tokens_plain(const T* x, const MergeGroups& groups, T* out, const MergeShape& shape, int64_t begin,
                        int64_t end, float* sum);

#ifdef ESPALIER_HAS_CUDA
// x has num_rows and index num_indices; an index or a group outside them ends in a device-side assertion.
cudaError_t merge_tokens_cuda(ElementType type, const void* x, const MergeGroups& groups, void* out,
                              const MergeShape& shape, int64_t num_rows, int64_t num_indices, int64_t num_groups,
                              cudaStream_t stream);
#endif

}  // namespace espalier::kernels
