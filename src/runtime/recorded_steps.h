// SPDX-License-Identifier: Apache-2.0
// Steps of decoding whose launches are the same each time: all that changes from step to step (ids, positions, lengths)
// is read on the device, so that a CUDA graph, recorded once, serves every step of the same shape. It is a decoder pass
// with one row per sequence, over the same arena. On the CPU, where nothing is recorded, DecoderPass does better.
#pragma once

#include <functional>
#include <list>
#include <memory>
#include <span>
#include <vector>

#include "runtime/kv_arena.h"
#include "runtime/loaded_model.h"
#include "runtime/sequence.h"

namespace espalier {

namespace kernels {
class DeviceGraph;
}

class RecordedSteps {
 public:
  using MakeGraph = std::function<std::unique_ptr<kernels::DeviceGraph>()>;

  RecordedSteps(const LoadedModel& model, KvArena& arena, MakeGraph make_graph);
  ~RecordedSteps();

  // False where one of them shares a run or has a policy that is asked again: all are then launched one by one.
  static bool can_step(const std::vector<Sequence*>& sequences);
  // Feeds ids[i] to sequence i and returns the logits behind them, [sequences, vocab]: valid until the next step, which
  // must not begin before they were read.
  at::Tensor step(const std::vector<Sequence*>& sequences, std::span<const int32_t> ids);

 private:
  // What a recording depends on.
  struct Shape {
    int64_t slots = 0;                // sequences, rounded up; slots without one compute what nobody reads
    std::vector<int64_t> max_length;  // [layer], rounded up
    std::vector<int> rotation;        // [layer]: which row of positions turns it
    int64_t generation = 0;           // of the arena
    bool operator==(const Shape&) const = default;
  };
  struct Recording;

  Shape shape_of(const std::vector<Sequence*>& sequences) const;
  Recording& recording_for(const Shape& shape);
  void write_inputs(Recording& recording, const std::vector<Sequence*>& sequences, std::span<const int32_t> ids,
                    const std::vector<std::vector<int64_t>>& rows);
  void launch_all(Recording& recording) const;

  const LoadedModel& model_;
  KvArena& arena_;
  MakeGraph make_graph_;
  at::Tensor frequencies_;                              // of the rotation, on the device
  std::vector<std::shared_ptr<const KvBlock>> nobody_;  // [layer]: the row that free slots write
  std::list<Recording> recordings_;                     // last used first
};

}  // namespace espalier
