// SPDX-License-Identifier: Apache-2.0
#include "runtime/kv_arena.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <utility>

#include "espalier/ops.h"

namespace espalier {

int64_t bytes_per_kv_row(const DecoderConfig& config, at::ScalarType dtype) {
  return 2 * config.num_kv_heads * config.head_dim * static_cast<int64_t>(at::elementSize(dtype));
}

KvBlock::~KvBlock() {
  arena_.release(layer_, begin_, begin_ + capacity_, std::move(place_));
}

KvArena::KvArena(const DecoderConfig& config, at::ScalarType dtype, at::Device device)
    : num_kv_heads_(config.num_kv_heads),
      head_dim_(config.head_dim),
      bytes_per_row_(bytes_per_kv_row(config, dtype)),
      has_window_(config.sliding_window > 0),
      options_(at::TensorOptions(dtype).device(device)),
      layers_(static_cast<size_t>(config.num_layers)) {}

int64_t KvArena::bytes_in_use() const {
  const std::scoped_lock lock(mutex_);
  int64_t rows = 0;
  for (const Layer& layer : layers_) rows += layer.rows_in_use;
  return rows * bytes_per_row_;
}

int64_t KvArena::bytes_reserved() const {
  const std::scoped_lock lock(mutex_);
  int64_t rows = 0;
  for (const Layer& layer : layers_) rows += layer.rows;
  return rows * bytes_per_row_;
}

// All memory is asked for before anything changes.
std::shared_ptr<const KvBlock> KvArena::allocate(int layer, int64_t wanted) {
  const int64_t rows = std::max<int64_t>(1, wanted);  // an empty range has no place of its own
  const std::scoped_lock lock(mutex_);
  Layer& l = layers_[static_cast<size_t>(layer)];
  const auto fits = [rows](const auto& range) { return range.second - range.first >= rows; };
  auto found = std::ranges::find_if(l.free, fits);
  if (found == l.free.end()) {
    grow(l, rows);
    found = std::ranges::find_if(l.free, fits);
  }
  FreeRows one = {{0, 0}};
  auto block = std::make_shared<const KvBlock>(*this, layer, found->first, rows, one.extract(one.begin()));
  FreeRows::node_type range = l.free.extract(found);
  range.key() += rows;
  if (range.key() < range.mapped()) l.free.insert(std::move(range));
  l.rows_in_use += rows;
  return block;
}

// More rows at the end, by half of what there are or as many as are missing.
void KvArena::grow(Layer& l, int64_t rows) {
  const bool ends_free = !l.free.empty() && std::prev(l.free.end())->second == l.rows;
  const int64_t first_free = ends_free ? std::prev(l.free.end())->first : l.rows;
  const int64_t grown = std::max(first_free + rows, l.rows + l.rows / 2);
  const auto moved = [&](const at::Tensor& buffer, at::IntArrayRef sizes, at::TensorOptions options) {
    at::Tensor roomy = at::empty(sizes, options);
    if (buffer.defined()) roomy.narrow(0, 0, first_free).copy_(buffer.narrow(0, 0, first_free));
    return roomy;
  };
  at::Tensor key = moved(l.key, {grown, num_kv_heads_, head_dim_}, options_);
  at::Tensor value = moved(l.value, {grown, num_kv_heads_, head_dim_}, options_);
  at::Tensor position_id;
  if (has_window_) position_id = moved(l.position_id, {grown}, options_.dtype(at::kLong));
  l.free[first_free] = grown;
  l.key = std::move(key);
  l.value = std::move(value);
  l.position_id = std::move(position_id);
  l.rows = grown;
  ++generation_;
}

// Neighbours that are free become one range; a layer that nobody uses lets its buffer go.
void KvArena::release(int layer, int64_t begin, int64_t end, FreeRows::node_type place) {
  const std::scoped_lock lock(mutex_);
  Layer& l = layers_[static_cast<size_t>(layer)];
  l.rows_in_use -= end - begin;
  if (l.rows_in_use == 0) {
    l = {};
    ++generation_;
    return;
  }
  const auto next = l.free.lower_bound(begin);
  if (next != l.free.end() && next->first == end) {
    end = next->second;
    l.free.erase(next);
  }
  const auto behind = l.free.lower_bound(begin);
  if (behind != l.free.begin() && std::prev(behind)->second == begin) {
    std::prev(behind)->second = end;
    return;
  }
  place.key() = begin;
  place.mapped() = end;
  l.free.insert(std::move(place));
}

int64_t SequenceKv::length(int layer) const {
  int64_t rows = 0;
  for (const KvRun& run : runs(layer)) rows += run.length;
  return rows;
}

int64_t SequenceKv::rows(int layer) const {
  int64_t rows = 0;
  for (const KvRun& run : runs(layer)) rows += run.length + run.held;
  return rows;
}

int64_t SequenceKv::extend(KvArena& arena, int layer, int64_t count, int64_t room, int64_t most) {
  std::vector<KvRun>& own = layers_[static_cast<size_t>(layer)];
  if (own.empty() || own.back().is_shared || own.back().is_selected()) {
    auto block = arena.allocate(layer, count + std::min(room, most));
    const int64_t begin = block->begin();
    own.push_back({std::move(block), begin, 0});
  }
  KvRun& last = own.back();
  if (last.begin + last.length + count > last.block->end()) {
    auto block = arena.allocate(layer, last.length + count + std::min(most, std::max(room, last.length / 4)));
    const auto move = [&](const at::Tensor& buffer) {
      if (buffer.defined())
        buffer.narrow(0, block->begin(), last.length).copy_(buffer.narrow(0, last.begin, last.length));
    };
    move(arena.key(layer));
    move(arena.value(layer));
    move(arena.position_id(layer));
    last.begin = block->begin();
    last.block = std::move(block);
  }
  const int64_t first = last.begin + last.length;
  last.length += count;
  return first;
}

void SequenceKv::keep(KvArena& arena, int layer, const at::Tensor& rows, int64_t room) {
  KvRun& own = layers_[static_cast<size_t>(layer)].back();
  rewrite(arena, layer, own, rows, rows.size(1) + room);
  own.length = rows.size(1);
}

void SequenceKv::select(KvArena& arena, int layer, const at::Tensor& tokens, int64_t num_tokens, bool holds) {
  std::vector<KvRun>& own = layers_[static_cast<size_t>(layer)];
  const auto selected = std::ranges::find_if(own, &KvRun::is_selected);
  KvRun& run = selected == own.end() ? own.back() : *selected;
  const at::TensorOptions longs = tokens.options();
  if (!run.is_selected()) {
    run.tokens = at::arange(num_tokens, longs).expand({tokens.size(0), num_tokens});
    run.num_tokens = num_tokens;
  }
  const int64_t rows = run.tokens.size(1);
  at::Tensor order = tokens;
  if (holds) {  // behind them the others, ascending
    at::Tensor rank = at::full({tokens.size(0), num_tokens}, num_tokens, longs).scatter(1, run.tokens, 0);
    rank = rank.scatter(1, tokens, num_tokens) + at::arange(num_tokens, longs);
    order = at::cat({tokens, std::get<0>(rank.sort(1)).slice(1, 0, rows - tokens.size(1))}, 1);
  }
  const at::Tensor row_of_token = at::zeros({tokens.size(0), num_tokens}, longs)
                                      .scatter(1, run.tokens, at::arange(rows, longs).expand_as(run.tokens));
  rewrite(arena, layer, run, row_of_token.gather(1, order), order.size(1));
  run.tokens = order;
  run.length = tokens.size(1);
  run.held = order.size(1) - run.length;
}

// Rows [g, k] of the run in a block of `capacity` rows, its own where that is as large.
void SequenceKv::rewrite(KvArena& arena, int layer, KvRun& run, const at::Tensor& rows, int64_t capacity) {
  const auto all = [&](const at::Tensor& buffer, int64_t count) { return buffer.narrow(0, run.begin, count); };
  const int64_t before = run.length + run.held;
  const auto [key, value] = ops::compact_kv(all(arena.key(layer), before), all(arena.value(layer), before), rows);
  if (run.block->end() - run.block->begin() != capacity) {
    run.block.reset();  // so that the new one may take its place
    run.block = arena.allocate(layer, capacity);
    run.begin = run.block->begin();
  }
  all(arena.key(layer), rows.size(1)).copy_(key);
  all(arena.value(layer), rows.size(1)).copy_(value);
}

SequenceKv SequenceKv::share(std::span<const int64_t> lengths) {
  SequenceKv shared = front(lengths);
  for (size_t layer = 0; layer < lengths.size(); ++layer) {
    std::vector<KvRun> runs = shared.layers_[layer];
    int64_t left = lengths[layer];
    for (const KvRun& run : layers_[layer]) {
      const int64_t taken = std::min(left, run.length);
      left -= taken;
      if (taken < run.length) runs.push_back({run.block, run.begin + taken, run.length - taken, run.is_shared});
    }
    layers_[layer] = std::move(runs);
  }
  return shared;
}

SequenceKv SequenceKv::front(std::span<const int64_t> lengths) const {
  SequenceKv shared(static_cast<int>(layers_.size()));
  for (size_t layer = 0; layer < lengths.size(); ++layer) {
    int64_t left = lengths[layer];
    for (const KvRun& run : layers_[layer]) {
      const int64_t taken = std::min(left, run.length);
      left -= taken;
      if (taken > 0) shared.layers_[layer].push_back({run.block, run.begin, taken, true});
    }
  }
  return shared;
}

}  // namespace espalier
