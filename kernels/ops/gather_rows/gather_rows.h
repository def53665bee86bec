// SPDX-License-Identifier: Apache-2.0
// Gathering rows below the dispatcher: the check that every backend makes, and the loops and launchers on raw pointers.
// Rows are bytes: every dtype works.
#pragma once

#include <cstdint>

#ifdef ESPALIER_HAS_CUDA
#include <cuda_runtime_api.h>
#endif

namespace at {
class Tensor;
}

namespace espalier::kernels {

// Throws unless x is [n, ...] and index int64 [k] on the same device. What index holds is checked by the backends.
void check_gather_rows(const at::Tensor& x, const at::Tensor& index);

// Rows of row_bytes that begin row_stride bytes apart.
struct RowBytes {
  int64_t row_bytes, row_stride;
};

// out[i] = x[index[i]] for i in [begin, end); out contiguous.
void gather_rows_plain(const void* x, const int64_t* index, void* out, const RowBytes& rows, int64_t begin,
                       int64_t end);

#ifdef ESPALIER_HAS_CUDA
// x has num_rows; an index outside them ends in a device-side assertion.
cudaError_t gather_rows_cuda(const void* x, const int64_t* index, void* out, const RowBytes& rows, int64_t num_rows,
                             int64_t num_kept, cudaStream_t stream);
#endif

}  // namespace espalier::kernels
