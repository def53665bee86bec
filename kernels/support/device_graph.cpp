// SPDX-License-Identifier: Apache-2.0
#include "kernels/support/device_graph.h"

namespace espalier::kernels {

std::unique_ptr<DeviceGraph> make_device_graph(c10::Device device) {
#ifdef ESPALIER_HAS_CUDA
  if (device.is_cuda()) return make_cuda_graph(device);
#endif
  static_cast<void>(device);
  return nullptr;
}

}  // namespace espalier::kernels
