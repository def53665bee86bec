// SPDX-License-Identifier: Apache-2.0
#include "runtime/recorded_steps.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <bit>

#include "espalier/ops.h"
#include "kernels/support/chosen_kernels.h"
#include "kernels/support/device_graph.h"
#include "model/decoder_layers.h"

namespace espalier {

namespace {

// Steps launched one by one before recording: recording costs about three of them, and many answers are over by then.
constexpr int kStepsBeforeRecording = 2;
constexpr size_t kMostRecordings = 8;

// Rows of the inputs: ids, then the positions, then row, begin and length of each layer's runs.
constexpr int64_t kIds = 0, kPositions = 1, kPerLayer = 3;

// Rounded up by an eighth to a quarter, so that lengths that differ a little share a recording.
int64_t bucket(int64_t rows) {
  const auto floor = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(rows)));
  const int64_t step = std::max<int64_t>(64, floor / 4);
  return (rows + step - 1) / step * step;
}

}  // namespace

struct RecordedSteps::Recording {
  Shape shape;
  at::Tensor staged, inputs;  // int64 [rows of inputs, slots]: on the host, on the device
  at::Tensor logits;
  std::unique_ptr<kernels::DeviceGraph> graph;
  int steps = 0;
  bool is_recorded = false;

  at::Tensor input(int64_t row) const { return inputs.select(0, row); }
  int64_t first_of_layer(int64_t layer) const {
    return inputs.size(0) - kPerLayer * (std::ssize(shape.max_length) - layer);
  }
};

RecordedSteps::RecordedSteps(const LoadedModel& model, KvArena& arena, MakeGraph make_graph)
    : model_(model),
      arena_(arena),
      make_graph_(std::move(make_graph)),
      frequencies_(rotary_frequencies(model.config.decoder).to(model.device)) {
  for (int layer = 0; layer < model.config.decoder.num_layers; ++layer) nobody_.push_back(arena.allocate(layer, 1));
}

RecordedSteps::~RecordedSteps() = default;

bool RecordedSteps::can_step(const std::vector<Sequence*>& sequences) {
  return std::ranges::all_of(sequences, [](const Sequence* s) {
    if (s->walk.asks_again()) return false;
    for (int layer = 0; layer < s->kv.num_layers(); ++layer)
      if (s->kv.runs(layer).size() != 1) return false;
    return true;
  });
}

// Of sequences that have their new row already.
RecordedSteps::Shape RecordedSteps::shape_of(const std::vector<Sequence*>& sequences) const {
  Shape shape{.slots = static_cast<int64_t>(std::bit_ceil(sequences.size())),
              .max_length = {},
              .rotation = {},
              .generation = arena_.generation()};
  std::vector<std::vector<int64_t>> positions;
  for (int layer = 0; layer < model_.config.decoder.num_layers; ++layer) {
    int64_t longest = 0;
    std::vector<int64_t> own;
    for (const Sequence* s : sequences) {
      longest = std::max(longest, s->kv.length(layer));
      own.push_back(s->position_at(layer));
    }
    shape.max_length.push_back(bucket(longest));
    // Layers whose positions are equal now stay so: each step adds one to all of them.
    const auto known = std::ranges::find(positions, own);
    shape.rotation.push_back(static_cast<int>(known - positions.begin()));
    if (known == positions.end()) positions.push_back(std::move(own));
  }
  return shape;
}

RecordedSteps::Recording& RecordedSteps::recording_for(const Shape& shape) {
  const auto found = std::ranges::find(recordings_, shape, &Recording::shape);
  if (found != recordings_.end()) {
    recordings_.splice(recordings_.begin(), recordings_, found);
    return recordings_.front();
  }
  std::erase_if(recordings_, [&](const Recording& r) { return r.shape.generation != shape.generation; });
  if (recordings_.size() >= kMostRecordings) recordings_.pop_back();
  Recording& made = recordings_.emplace_front();
  made.shape = shape;
  made.graph = make_graph_();
  const int64_t num_rotations = 1 + *std::ranges::max_element(shape.rotation);
  const int64_t num_inputs = kPositions + num_rotations + kPerLayer * std::ssize(shape.max_length);
  made.staged = at::zeros({num_inputs, shape.slots}, at::TensorOptions(at::kLong));
  if (model_.device.is_cuda()) made.staged = made.staged.pin_memory();  // else the copy would wait for the device
  made.inputs = at::empty(made.staged.sizes(), made.staged.options().device(model_.device).pinned_memory(false));
  return made;
}

// This step's numbers on the host, and on their way to the device. rows[layer][i]: where sequence i's new row goes.
void RecordedSteps::write_inputs(Recording& r, const std::vector<Sequence*>& sequences, std::span<const int32_t> ids,
                                 const std::vector<std::vector<int64_t>>& rows) {
  const auto at_row = [&](int64_t row, size_t slot) -> int64_t& {
    return r.staged.data_ptr<int64_t>()[row * r.shape.slots + static_cast<int64_t>(slot)];
  };
  for (size_t slot = 0; slot < static_cast<size_t>(r.shape.slots); ++slot) {
    const bool is_used = slot < sequences.size();
    at_row(kIds, slot) = is_used ? ids[slot] : 0;
    for (size_t layer = 0; layer < rows.size(); ++layer) {
      const int64_t first = r.first_of_layer(static_cast<int64_t>(layer));
      const int64_t free_row = nobody_[layer]->begin();
      const KvRun* run = is_used ? &sequences[slot]->kv.runs(static_cast<int>(layer))[0] : nullptr;
      at_row(kPositions + r.shape.rotation[layer], slot) =
          is_used ? sequences[slot]->position_at(static_cast<int>(layer)) : 0;
      at_row(first, slot) = is_used ? rows[layer][slot] : free_row;
      at_row(first + 1, slot) = is_used ? run->begin : free_row;
      at_row(first + 2, slot) = is_used ? run->length : 1;
    }
  }
  r.inputs.copy_(r.staged, /*non_blocking=*/true);
}

// One step from inputs to logits: what is recorded.
void RecordedSteps::launch_all(Recording& r) const {
  struct Steps {
    const RecordedSteps& self;
    const Recording& r;
    int rotation = -1;

    void before_layer(int layer, LayerRows& rows) {
      const int wanted = r.shape.rotation[static_cast<size_t>(layer)];
      if (wanted == rotation) return;
      rotation = wanted;
      rows.rotary =
          rotary(self.model_.config.decoder, self.frequencies_, r.input(kPositions + rotation), self.model_.dtype);
    }
    at::Tensor attend(int layer, const QueryKeyValue& qkv, LayerRows&) const {
      const DecoderConfig& config = self.model_.config.decoder;
      const KvArena& arena = self.arena_;
      const int64_t first = r.first_of_layer(layer);
      arena.key(layer).index_copy_(0, r.input(first), qkv.key);
      arena.value(layer).index_copy_(0, r.input(first), qkv.value);
      ops::OptionalTensor query_position, key_position;
      if (config.sliding_window > 0) {
        query_position = r.input(kPositions + rotation);
        key_position = arena.position_id(layer);
        key_position->index_copy_(0, r.input(first), *query_position);
      }
      return std::get<0>(ops::attention_decode({.query = qkv.query,
                                                .key = arena.key(layer),
                                                .value = arena.value(layer),
                                                .key_begin = r.input(first + 1),
                                                .key_length = r.input(first + 2),
                                                .max_length = r.shape.max_length[static_cast<size_t>(layer)],
                                                .scale = attention_scale(config),
                                                .window = config.sliding_window,
                                                .query_position = query_position,
                                                .key_position = key_position}));
    }
    void after_attention(int, LayerRows&) const {}
  };
  const DecoderWeights& weights = model_.weights.decoder;
  LayerRows rows{embed_tokens(weights, r.input(kIds)), {}};
  Steps steps{*this, r};
  run_layers(model_.config.decoder, weights, 0, model_.config.decoder.num_layers, rows, steps);
  r.logits = logits(weights, final_norm(model_.config.decoder, weights, rows.hidden));
}

at::Tensor RecordedSteps::step(const std::vector<Sequence*>& sequences, std::span<const int32_t> ids) {
  constexpr int64_t kRoomOfAnswers = 256;
  std::vector<std::vector<int64_t>> rows;
  for (int layer = 0; layer < model_.config.decoder.num_layers; ++layer) {
    std::vector<int64_t>& own = rows.emplace_back();
    for (Sequence* s : sequences) own.push_back(s->kv.extend(arena_, layer, 1, kRoomOfAnswers, s->rows_to_come(layer)));
  }
  Recording& r = recording_for(shape_of(sequences));
  write_inputs(r, sequences, ids, rows);
  if (r.graph && !r.is_recorded && r.steps == kStepsBeforeRecording) {
    r.graph->record([&] { launch_all(r); });
    r.is_recorded = true;
  }
  if (r.is_recorded) {
    r.graph->launch();
    kernels::note_kernel("decode", "device_graph");
  } else {
    launch_all(r);
    ++r.steps;
    kernels::note_kernel("decode", "launches");
  }
  for (Sequence* s : sequences) {
    ++s->num_decoded;
    s->stats.grown(s->kv);
  }
  return r.logits.slice(0, 0, std::ssize(sequences));
}

}  // namespace espalier
