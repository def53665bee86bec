// SPDX-License-Identifier: Apache-2.0
// Cosines of all rows with all rows on raw pointers: the plain reference (which tests call), the fast CPU path and the
// CUDA kernels around the library's matrix product. For a few directions: cosine_score.h; for a block with itself,
// where ties must be ties: cosine_matrix.h.
#pragma once

#include <cstdint>

#ifdef ESPALIER_HAS_CUDA
#include <cuda_runtime_api.h>
#endif

#include "kernels/support/row_dots.h"

namespace at {
class Tensor;
}

namespace espalier::kernels {

// Throws unless x is [n, d] and y [m, d], alike in dtype (float32, bfloat16, float16) and device.
void check_pairwise_cosine(const at::Tensor& x, const at::Tensor& y);

// n rows of FeatureRows::d elements.
struct Rows {
  FeatureRows features;
  int64_t n;
};

// out[i, j] = cos(x[i], y[j]), 0 where a norm is below kSmallestNorm; out [x.n, y.n] contiguous. Sums in float32.
void pairwise_cosine_plain(const Rows& x, const Rows& y, float* out);

// The same on at::get_num_threads() threads, in panels of 48 rows of y.
void pairwise_cosine_panels(const Rows& x, const Rows& y, CpuLevel level, float* out);

#ifdef ESPALIER_HAS_CUDA
// inverse_norm[i] = 1 / |row i|, 0 where the norm is below kSmallestNorm.
cudaError_t inverse_norms_cuda(const Rows& rows, float* inverse_norm, cudaStream_t stream);

// products [n, m] contiguous, in place: times both inverse norms, within [-1, 1], 0 where one of them is 0.
cudaError_t scale_products_cuda(float* products, const float* x_inverse_norm, const float* y_inverse_norm, int64_t n,
                                int64_t m, cudaStream_t stream);
#endif

}  // namespace espalier::kernels
