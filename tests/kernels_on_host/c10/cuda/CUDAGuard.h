// SPDX-License-Identifier: Apache-2.0
// In place of libtorch's, for ops whose kernels run on the host: there is one device.
#pragma once

#include <c10/core/Device.h>

namespace c10::cuda {
struct CUDAGuard {
  explicit CUDAGuard(Device) {}
};
}  // namespace c10::cuda
