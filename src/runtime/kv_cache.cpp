// SPDX-License-Identifier: Apache-2.0
#include "runtime/kv_cache.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>

#include <algorithm>

namespace espalier {

namespace {

at::Tensor pick(const std::vector<int64_t>& values, const std::vector<size_t>& sequences) {
  at::Tensor t = at::empty({static_cast<int64_t>(sequences.size())}, at::kLong);
  for (size_t i = 0; i < sequences.size(); ++i) t.data_ptr<int64_t>()[i] = values[sequences[i]];
  return t;
}

}  // namespace

void LayerCache::set(const at::Tensor& key, const at::Tensor& value, const std::vector<int64_t>& lengths) {
  key_ = key;
  value_ = value;
  position_id_ = at::Tensor();
  length_ = capacity_ = lengths;
  begin_.assign(lengths.size(), 0);
  for (size_t s = 1; s < lengths.size(); ++s) begin_[s] = begin_[s - 1] + lengths[s - 1];
}

void LayerCache::set_positions(const at::Tensor& position_id) {
  position_id_ = position_id;
}

void LayerCache::replace(size_t sequence, const at::Tensor& key, const at::Tensor& value,
                         const at::Tensor& position_id) {
  const int64_t rows = key.size(0);  // never more than there were
  key_.slice(0, begin_[sequence], begin_[sequence] + rows).copy_(key);
  value_.slice(0, begin_[sequence], begin_[sequence] + rows).copy_(value);
  if (position_id_.defined()) position_id_.slice(0, begin_[sequence], begin_[sequence] + rows).copy_(position_id);
  length_[sequence] = rows;
}

// Moves every sequence to a buffer with `rows_each` free rows behind it.
void LayerCache::make_room(int64_t rows_each) {
  std::vector<int64_t> begin(length_.size()), capacity(length_.size());
  int64_t rows = 0;
  for (size_t s = 0; s < length_.size(); ++s) {
    begin[s] = rows;
    capacity[s] = length_[s] + rows_each;
    rows += capacity[s];
  }
  const auto move = [&](at::Tensor& buffer) {
    std::vector<int64_t> shape = buffer.sizes().vec();
    shape[0] = rows;
    at::Tensor roomy = at::empty(shape, buffer.options());
    for (size_t s = 0; s < length_.size(); ++s)
      roomy.slice(0, begin[s], begin[s] + length_[s]).copy_(buffer.slice(0, begin_[s], begin_[s] + length_[s]));
    buffer = roomy;
  };
  move(key_);
  move(value_);
  if (position_id_.defined()) move(position_id_);
  begin_ = std::move(begin);
  capacity_ = std::move(capacity);
}

void LayerCache::append(const std::vector<size_t>& sequences, const at::Tensor& key, const at::Tensor& value,
                        const at::Tensor& position_id) {
  constexpr int64_t kFirstRoom = 64;
  if (std::ranges::any_of(sequences, [&](size_t s) { return length_[s] == capacity_[s]; })) {
    const int64_t longest = *std::ranges::max_element(length_);
    make_room(std::max(kFirstRoom, longest / 4));
  }
  for (size_t i = 0; i < sequences.size(); ++i) {
    const int64_t row = begin_[sequences[i]] + length_[sequences[i]]++;
    key_.select(0, row).copy_(key.select(0, static_cast<int64_t>(i)));
    value_.select(0, row).copy_(value.select(0, static_cast<int64_t>(i)));
    if (position_id_.defined()) position_id_.select(0, row).copy_(position_id.select(0, static_cast<int64_t>(i)));
  }
}

at::Tensor LayerCache::begins(const std::vector<size_t>& sequences) const {
  return pick(begin_, sequences);
}
at::Tensor LayerCache::lengths(const std::vector<size_t>& sequences) const {
  return pick(length_, sequences);
}

int64_t LayerCache::bytes() const {
  int64_t rows = 0;
  for (const int64_t length : length_) rows += length;
  return 2 * rows * key_.size(1) * key_.size(2) * key_.element_size();
}

}  // namespace espalier
