// SPDX-License-Identifier: Apache-2.0
// Decoding whose launches are the same in every step: keys and values lie in buffers that stay where they are, and all
// that changes from step to step (ids, positions, lengths) is read on the device. So a CUDA graph, recorded once,
// serves every step, and later answers of the same sizes too. On the CPU, where nothing is recorded, decode_step() does
// better.
#pragma once

#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "runtime/kv_cache.h"
#include "runtime/loaded_model.h"
#include "runtime/sequence.h"

namespace espalier {

namespace kernels {
class DeviceGraph;
}

class SteadyDecoder {
 public:
  // Without a graph every step is launched one by one.
  SteadyDecoder(const LoadedModel& model, std::unique_ptr<kernels::DeviceGraph> graph);
  ~SteadyDecoder();

  // Takes the rows of sequences `members` out of a prefilled cache, layer by layer, and leaves it empty. room: steps
  // that can follow before the buffers must grow (they do so by themselves).
  void begin(KvCache& cache, std::span<const Sequence> sequences, const std::vector<size_t>& members, int64_t room);

  // As decode_step(): feeds ids[i] to sequence active[i], one of the members, and returns the logits behind them.
  // Members that are not active are computed too, from what they had last, and nobody looks. What is returned is valid
  // until the next step, which must not begin before it was read: then the device is done with this step's numbers.
  at::Tensor step(std::span<Sequence> sequences, const std::vector<size_t>& active, const std::vector<int32_t>& ids);

  // Whether begin() with these would find its buffers, and so its recording, fit.
  bool fits(const KvCache& cache, std::span<const Sequence> sequences, const std::vector<size_t>& members,
            int64_t room) const;
  int64_t bytes() const;  // of the buffers for keys and values

 private:
  // What a recording depends on.
  struct Shape {
    std::vector<int64_t> capacity;  // rows of member m at layer l: [l · members + m]
    std::vector<int> rotation;      // [l]: which row of positions turns the layer
    bool operator==(const Shape&) const = default;
  };
  struct Rows {
    at::Tensor key, value, position;  // position with a sliding window only
  };

  int64_t num_members() const { return std::ssize(members_); }
  // places: where the members are in `cache`.
  static Shape shape_for(const KvCache& cache, const std::vector<size_t>& places, std::span<const Sequence> sequences,
                         const std::vector<size_t>& members, int64_t room);
  void adopt(KvCache& cache, const std::vector<size_t>& places, std::span<const Sequence> sequences, int64_t room);
  void make_buffers();
  void adopt_layer(int layer, const LayerCache& cache, const std::vector<size_t>& places);
  void grow(std::span<const Sequence> sequences);
  void write_inputs(std::span<Sequence> sequences, const std::vector<size_t>& active, const std::vector<int32_t>& ids);
  void launch_all();

  const LoadedModel& model_;
  std::unique_ptr<kernels::DeviceGraph> graph_;
  at::Tensor frequencies_;  // of the rotation, on the device
  std::vector<size_t> members_;
  Shape shape_;
  std::vector<Rows> rows_;               // [layer]
  std::vector<int64_t> begin_, length_;  // [l · members + m]
  std::vector<int64_t> max_length_;      // [layer]
  at::Tensor staged_, inputs_;           // int64 [rows of inputs, members]: on the host, on the device
  at::Tensor logits_;
  int steps_before_recording_ = 0;
  bool is_recorded_ = false;
};

// Between answers, the decoders of the last ones with their buffers and recordings. Thread-safe: answers at the same
// time have one each.
class IdleDecoders {
 public:
  // max_bytes: what the buffers of those that wait may take together.
  explicit IdleDecoders(int64_t max_bytes) : max_bytes_(max_bytes) {}

  // A decoder that has begun with `members`: one whose buffers and recording fit, or else a new one, or the oldest made
  // anew.
  std::unique_ptr<SteadyDecoder> begin(const LoadedModel& model, KvCache& cache, std::span<const Sequence> sequences,
                                       const std::vector<size_t>& members, int64_t room);
  // The oldest are let go while there are too many or their buffers too large together; never this one.
  void keep(std::unique_ptr<SteadyDecoder> decoder);

 private:
  int64_t max_bytes_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<SteadyDecoder>> decoders_;  // oldest first
};

}  // namespace espalier
