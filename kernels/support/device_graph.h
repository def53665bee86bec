// SPDX-License-Identifier: Apache-2.0
// What a callable launches on a device, recorded once and launched again in one go: a step of decoding is hundreds of
// small launches, and the gaps between them can cost more than their work. Not an op, and nothing for the CPU.
#pragma once

#include <c10/core/Device.h>

#include <functional>
#include <memory>

namespace espalier::kernels {

class DeviceGraph {
 public:
  virtual ~DeviceGraph() = default;

  // Calls `work` twice, once for real (libraries set up what they need) and once to record it, on a stream of its own
  // between what the current stream did and does next. A recording made before is forgotten. `work` must use memory
  // that stays where it is, wait for nothing and read nothing from the host; tensors that it makes hold results after
  // launch().
  virtual void record(const std::function<void()>& work) = 0;

  // Repeats what was recorded, on the current stream.
  virtual void launch() = 0;
};

// Null where the device has no such thing.
std::unique_ptr<DeviceGraph> make_device_graph(c10::Device device);

#ifdef ESPALIER_HAS_CUDA
std::unique_ptr<DeviceGraph> make_cuda_graph(c10::Device device);
#endif

}  // namespace espalier::kernels
