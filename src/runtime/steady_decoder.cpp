// SPDX-License-Identifier: Apache-2.0
#include "runtime/steady_decoder.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <bit>
#include <numeric>

#include "espalier/ops.h"
#include "kernels/support/chosen_kernels.h"
#include "kernels/support/device_graph.h"
#include "runtime/decode_token.h"

namespace espalier {

namespace {

// Steps launched one by one before recording: recording costs about three of them, and many answers are over by then.
constexpr int kStepsBeforeRecording = 2;

// Decoders kept between answers.
constexpr size_t kMostIdle = 4;

// Room is made in steps of an eighth to a quarter of the length, so that prompts that differ a little share a
// recording.
int64_t bucket(int64_t rows) {
  const auto floor = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(rows)));
  const int64_t step = std::max<int64_t>(64, floor / 4);
  return (rows + step - 1) / step * step;
}

// Rows of the inputs: ids, then the positions, then row, begin and length of each layer's caches.
constexpr int64_t kIds = 0, kPositions = 1, kPerLayer = 3;

}  // namespace

SteadyDecoder::SteadyDecoder(const LoadedModel& model, std::unique_ptr<kernels::DeviceGraph> graph)
    : model_(model),
      graph_(std::move(graph)),
      frequencies_(rotary_frequencies(model.config.decoder).to(model.device)) {}

SteadyDecoder::~SteadyDecoder() = default;

SteadyDecoder::Shape SteadyDecoder::shape_for(const KvCache& cache, const std::vector<size_t>& places,
                                              std::span<const Sequence> sequences, const std::vector<size_t>& members,
                                              int64_t room) {
  Shape shape;
  std::vector<std::vector<int64_t>> positions;
  for (size_t layer = 0; layer < cache.size(); ++layer) {
    std::vector<int64_t> own;
    for (const size_t place : places) shape.capacity.push_back(bucket(cache[layer].length(place) + room));
    for (const size_t s : members) own.push_back(sequences[s].next_position[layer]);
    // Layers whose positions are equal now stay so: each step adds one to all of them.
    const auto known = std::ranges::find(positions, own);
    shape.rotation.push_back(static_cast<int>(known - positions.begin()));
    if (known == positions.end()) positions.push_back(std::move(own));
  }
  return shape;
}

bool SteadyDecoder::fits(const KvCache& cache, std::span<const Sequence> sequences, const std::vector<size_t>& members,
                         int64_t room) const {
  return !rows_.empty() && shape_for(cache, members, sequences, members, room) == shape_;
}

int64_t SteadyDecoder::bytes() const {
  int64_t total = 0;
  for (const Rows& rows : rows_) total += static_cast<int64_t>(rows.key.nbytes() + rows.value.nbytes());
  return total;
}

void SteadyDecoder::begin(KvCache& cache, std::span<const Sequence> sequences, const std::vector<size_t>& members,
                          int64_t room) {
  members_ = members;
  adopt(cache, members, sequences, room);
}

void SteadyDecoder::adopt(KvCache& cache, const std::vector<size_t>& places, std::span<const Sequence> sequences,
                          int64_t room) {
  Shape shape = shape_for(cache, places, sequences, members_, room);
  if (rows_.empty() || shape != shape_) {
    shape_ = std::move(shape);
    make_buffers();
  }
  length_.clear();
  for (int layer = 0; layer < std::ssize(cache); ++layer) {
    for (const size_t place : places) length_.push_back(cache[layer].length(place));
    adopt_layer(layer, cache[layer], places);
    cache[layer] = LayerCache();
  }
}

// Everything that a recording refers to. The layers' buffers come one by one in adopt_layer(), as the cache they
// replace is let go.
void SteadyDecoder::make_buffers() {
  is_recorded_ = false;
  steps_before_recording_ = 0;
  rows_.assign(model_.config.decoder.num_layers, {});
  begin_.clear();
  max_length_.clear();
  for (size_t layer = 0; layer < rows_.size(); ++layer) {
    const auto first = shape_.capacity.begin() + static_cast<int64_t>(layer * members_.size());
    int64_t row = 0;
    for (auto capacity = first; capacity != first + num_members(); ++capacity) {
      begin_.push_back(row);
      row += *capacity;
    }
    max_length_.push_back(*std::max_element(first, first + num_members()));
  }
  const int64_t num_rotations = 1 + *std::ranges::max_element(shape_.rotation);
  const int64_t num_inputs = kPositions + num_rotations + kPerLayer * std::ssize(rows_);
  staged_ = at::zeros({num_inputs, num_members()}, at::TensorOptions(at::kLong));
  if (model_.device.is_cuda()) staged_ = staged_.pin_memory();  // else the copy would wait for the device
  inputs_ = at::empty(staged_.sizes(), staged_.options().device(model_.device).pinned_memory(false));
}

void SteadyDecoder::adopt_layer(int layer, const LayerCache& cache, const std::vector<size_t>& places) {
  Rows& own = rows_[layer];
  const int64_t first = layer * num_members(), last = first + num_members() - 1;
  const at::Tensor begins = cache.begins(places);
  const auto copy = [&](at::Tensor& to, const at::Tensor& from) {
    if (!to.defined()) {
      std::vector<int64_t> sizes = from.sizes().vec();
      sizes[0] = begin_[last] + shape_.capacity[last];
      to = at::empty(sizes, from.options());
    }
    for (int64_t m = 0; m < num_members(); ++m) {
      const at::Tensor rows = from.narrow(0, begins.const_data_ptr<int64_t>()[m], length_[first + m]);
      to.narrow(0, begin_[first + m], length_[first + m]).copy_(rows);
    }
  };
  copy(own.key, cache.key());
  copy(own.value, cache.value());
  if (model_.config.decoder.sliding_window > 0) copy(own.position, cache.position_id());
}

// By way of a packed cache of the members alone, as a prefill would leave it.
void SteadyDecoder::grow(std::span<const Sequence> sequences) {
  constexpr int64_t kRoom = 256;
  KvCache packed(rows_.size());
  for (size_t layer = 0; layer < rows_.size(); ++layer) {
    const auto first = static_cast<int64_t>(layer) * num_members();
    const auto gather = [&](const at::Tensor& from) {
      std::vector<at::Tensor> parts;
      for (int64_t m = first; m < first + num_members(); ++m) parts.push_back(from.narrow(0, begin_[m], length_[m]));
      return at::cat(parts);
    };
    packed[layer].set(gather(rows_[layer].key), gather(rows_[layer].value),
                      {length_.begin() + first, length_.begin() + first + num_members()});
    if (rows_[layer].position.defined()) packed[layer].set_positions(gather(rows_[layer].position));
    rows_[layer] = {};
  }
  rows_.clear();
  std::vector<size_t> places(members_.size());
  std::iota(places.begin(), places.end(), size_t{0});
  adopt(packed, places, sequences, kRoom);
}

// This step's numbers on the host, and on their way to the device.
void SteadyDecoder::write_inputs(std::span<Sequence> sequences, const std::vector<size_t>& active,
                                 const std::vector<int32_t>& ids) {
  const int64_t layers = std::ssize(rows_), b = num_members();
  const auto at_row = [&](int64_t row, int64_t m) -> int64_t& { return staged_.data_ptr<int64_t>()[row * b + m]; };
  for (int64_t m = 0; m < b; ++m) {
    Sequence& sequence = sequences[members_[m]];
    const auto found = std::ranges::find(active, members_[m]);
    const bool is_active = found != active.end();
    if (is_active) at_row(kIds, m) = ids[found - active.begin()];
    for (int64_t layer = 0; layer < layers; ++layer) {
      const int64_t own = layer * b + m, row = inputs_.size(0) - kPerLayer * (layers - layer);
      if (is_active) {
        at_row(kPositions + shape_.rotation[layer], m) = sequence.next_position[layer]++;
        ++length_[own];
      }
      // One that has ended writes over its last row: it has no row to come.
      at_row(row, m) = begin_[own] + length_[own] - 1;
      at_row(row + 1, m) = begin_[own];
      at_row(row + 2, m) = length_[own];
    }
  }
  inputs_.copy_(staged_, /*non_blocking=*/true);
}

// One step from inputs_ to logits_: what is recorded.
void SteadyDecoder::launch_all() {
  const DecoderConfig& config = model_.config.decoder;
  const int64_t layers = std::ssize(rows_);
  const auto input = [&](int64_t row) { return inputs_.select(0, row); };
  Rotary rotary_now;
  int rotation = -1;
  const auto rotary_of = [&](int layer) -> const Rotary& {
    if (rotation != shape_.rotation[layer]) {
      rotation = shape_.rotation[layer];
      rotary_now = rotary(config, frequencies_, input(kPositions + rotation), model_.dtype);
    }
    return rotary_now;
  };
  const auto attend = [&](int layer, const QueryKeyValue& qkv) {
    Rows& own = rows_[layer];
    const int64_t first = inputs_.size(0) - kPerLayer * (layers - layer);
    own.key.index_copy_(0, input(first), qkv.key);
    own.value.index_copy_(0, input(first), qkv.value);
    ops::OptionalTensor query_position, key_position;
    if (config.sliding_window > 0) {
      query_position = input(kPositions + rotation);
      own.position.index_copy_(0, input(first), *query_position);
      key_position = own.position;
    }
    return std::get<0>(ops::attention_decode(qkv.query, own.key, own.value, input(first + 1), input(first + 2),
                                             max_length_[layer], attention_scale(config), config.sliding_window,
                                             query_position, key_position));
  };
  logits_ = decode_token(model_, input(kIds), rotary_of, attend);
}

at::Tensor SteadyDecoder::step(std::span<Sequence> sequences, const std::vector<size_t>& active,
                               const std::vector<int32_t>& ids) {
  const auto is_full = [&](size_t i) { return length_[i] == shape_.capacity[i]; };
  bool must_grow = false;
  for (size_t i = 0; i < length_.size(); ++i)
    must_grow |= is_full(i) && std::ranges::find(active, members_[i % members_.size()]) != active.end();
  if (must_grow) grow(sequences);
  write_inputs(sequences, active, ids);
  if (graph_ && !is_recorded_ && steps_before_recording_ == kStepsBeforeRecording) {
    graph_->record([this] { launch_all(); });
    is_recorded_ = true;
  }
  if (is_recorded_) {
    graph_->launch();
    kernels::note_kernel("decode", "device_graph");
  } else {
    launch_all();
    ++steps_before_recording_;
    kernels::note_kernel("decode", "launches");
  }
  if (active == members_) return logits_;
  std::vector<int64_t> rows;
  for (const size_t s : active) rows.push_back(std::ranges::find(members_, s) - members_.begin());
  return logits_.index_select(0, at::tensor(rows, at::kLong).to(model_.device));
}

std::unique_ptr<SteadyDecoder> IdleDecoders::begin(const LoadedModel& model, KvCache& cache,
                                                   std::span<const Sequence> sequences,
                                                   const std::vector<size_t>& members, int64_t room) {
  std::unique_ptr<SteadyDecoder> decoder;
  {
    const std::scoped_lock lock(mutex_);
    auto fitting =
        std::ranges::find_if(decoders_, [&](const auto& d) { return d->fits(cache, sequences, members, room); });
    if (fitting == decoders_.end() && decoders_.size() >= kMostIdle) fitting = decoders_.begin();
    if (fitting != decoders_.end()) {
      decoder = std::move(*fitting);
      decoders_.erase(fitting);
    }
  }
  if (!decoder) decoder = std::make_unique<SteadyDecoder>(model, kernels::make_device_graph(model.device));
  decoder->begin(cache, sequences, members, room);
  return decoder;
}

void IdleDecoders::keep(std::unique_ptr<SteadyDecoder> decoder) {
  std::vector<std::unique_ptr<SteadyDecoder>> gone;  // let go behind the lock
  const std::scoped_lock lock(mutex_);
  decoders_.push_back(std::move(decoder));
  int64_t bytes = 0;
  for (const auto& d : decoders_) bytes += d->bytes();
  while (decoders_.size() > 1 && (decoders_.size() > kMostIdle || bytes > max_bytes_)) {
    bytes -= decoders_.front()->bytes();
    gone.push_back(std::move(decoders_.front()));
    decoders_.erase(decoders_.begin());
  }
}

}  // namespace espalier
