// SPDX-License-Identifier: Apache-2.0
// RMS norm on raw pointers: the plain reference, which tests call, and the CUDA launcher.
#pragma once

#include <cstdint>

namespace espalier::kernels {

// out[r, i] = T(x[r, i] / sqrt(mean_i x² + eps)) · weight[i]; x and out [rows, d] contiguous. The cast before the weight is the models' own.
template <typename T>
void rms_norm_plain(const T* x, const T* weight, T* out, int64_t rows, int64_t d, float eps);

}  // namespace espalier::kernels
