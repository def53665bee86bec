// SPDX-License-Identifier: Apache-2.0
// In place of CUDA's, for kernels that run on the host: clusters of thread blocks.
#pragma once

#include "tests/kernels_on_host/host_device.h"

namespace cooperative_groups {
struct cluster_group {
  void sync() const { espalier::host_device::wait_for_cluster(); }
  template <typename T>
  T* map_shared_rank(T* at, int rank) const {
    return static_cast<T*>(espalier::host_device::shared_memory_of(static_cast<unsigned>(rank), at));
  }
};
inline cluster_group this_cluster() {
  return {};
}
}  // namespace cooperative_groups
