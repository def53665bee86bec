// SPDX-License-Identifier: Apache-2.0
// Weighted means of groups of rows on raw pointers: the plain reference (which tests call), the fast CPU path and the
// CUDA launcher.
#pragma once

#include <cstdint>

#include "kernels/support/element_type.h"

#ifdef ESPALIER_HAS_CUDA
#include <cuda_runtime_api.h>
#endif

namespace espalier::kernels {

struct MergeGroups {
  const int64_t* index;        // [r]
  const int64_t* group_begin;  // [k + 1]
  const float* weight;         // [r], or null: all ones
};

// Rows of d elements that begin `stride` elements apart.
struct MergeShape {
  int64_t d, stride;
};

// out[i] for groups i in [begin, end), out [k, d] contiguous; sums in float32, in the order of `index`.
template <typename T>
void merge_tokens_plain(const T* x, const MergeGroups& groups, T* out, const MergeShape& shape, int64_t begin,
                        int64_t end);

using MergeTokensLoop = void(ElementType type, const void* x, const MergeGroups& groups, void* out,
                             const MergeShape& shape, int64_t begin, int64_t end);
namespace avx2 {
MergeTokensLoop merge_tokens;
}
namespace avx512 {
MergeTokensLoop merge_tokens;
}

#ifdef ESPALIER_HAS_CUDA
// x has num_rows and index num_indices; an index or a group outside them ends in a device-side assertion.
cudaError_t merge_tokens_cuda(ElementType type, const void* x, const MergeGroups& groups, void* out,
                              const MergeShape& shape, int64_t num_rows, int64_t num_indices, int64_t num_groups,
                              cudaStream_t stream);
#endif

}  // namespace espalier::kernels
