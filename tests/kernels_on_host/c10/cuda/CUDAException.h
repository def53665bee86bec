// SPDX-License-Identifier: Apache-2.0
// In place of libtorch's, for ops whose kernels run on the host.
#pragma once

#include <c10/util/Exception.h>
#include <cuda_runtime_api.h>

#define C10_CUDA_CHECK(call) TORCH_CHECK((call) == cudaSuccess, "a launch failed")
