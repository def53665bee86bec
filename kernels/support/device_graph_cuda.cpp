// SPDX-License-Identifier: Apache-2.0
#include <ATen/cuda/CUDAEvent.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "kernels/support/device_graph.h"

namespace espalier::kernels {
namespace {

class CudaGraph : public DeviceGraph {
 public:
  explicit CudaGraph(c10::Device device)
      : device_(device), stream_(c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device.index())) {}

  void record(const std::function<void()>& work) override {
    const c10::cuda::CUDAGuard guard(device_);
    graph_.reset();  // the library's graph takes one recording
    const c10::cuda::CUDAStream outer = c10::cuda::getCurrentCUDAStream();
    follow(stream_, outer);
    {
      const c10::cuda::CUDAStreamGuard on_ours(stream_);
      work();
      stream_.synchronize();
      graph_ = std::make_unique<at::cuda::CUDAGraph>();
      // Other threads may allocate and wait meanwhile: they are no part of this recording.
      graph_->capture_begin(/*pool=*/{0, 0}, cudaStreamCaptureModeThreadLocal);
      try {
        work();
      } catch (...) {
        abandon();
        throw;
      }
      graph_->capture_end();
    }
    follow(outer, stream_);
  }

  void launch() override {
    const c10::cuda::CUDAGuard guard(device_);
    graph_->replay();
  }

 private:
  // What comes on `later` waits for what is on `earlier`.
  static void follow(const c10::cuda::CUDAStream& later, const c10::cuda::CUDAStream& earlier) {
    at::cuda::CUDAEvent event;
    event.record(earlier);
    event.block(later);
  }

  // The stream must leave its recording mode, whatever became of the recording.
  void abandon() noexcept {
    try {
      graph_->capture_end();
    } catch (...) {
      // What went wrong first is on its way to the caller already.
    }
    graph_.reset();
  }

  c10::Device device_;
  c10::cuda::CUDAStream stream_;  // a recording needs one that is not the default
  std::unique_ptr<at::cuda::CUDAGraph> graph_;
};

}  // namespace

std::unique_ptr<DeviceGraph> make_cuda_graph(c10::Device device) {
  return std::make_unique<CudaGraph>(device);
}

}  // namespace espalier::kernels
