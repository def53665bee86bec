// SPDX-License-Identifier: Apache-2.0
// Keys and values of a batch, one packed buffer a layer, in which every sequence has a length of its own in every
// layer. There is no global "sequence length": a policy that prunes before layer 2 leaves
//
//   layer 0, 1   |text|image image image image|text|        length(0) == length(1) == n
//   layer 2, …   |text|image|text|                          length(2) == n - dropped
//
// Rows are token-major, [rows, g, d_h], so that the keys of a prefill are the cache without a copy in another order.
// Each sequence's rows lie together, with room behind them for generated tokens.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace espalier {

class LayerCache {
 public:
  // Takes over the packed keys and values of a prefill, [sum of lengths, g, d_h].
  void set(const at::Tensor& key, const at::Tensor& value, const std::vector<int64_t>& lengths);
  // Position ids of the cached keys, int64 [sum of lengths]; needed with a sliding window only.
  void set_positions(const at::Tensor& position_id);
  // Replaces one sequence's rows (a verdict at this cache).
  void replace(size_t sequence, const at::Tensor& key, const at::Tensor& value, const at::Tensor& position_id);
  // Adds one row to each of `sequences`: key, value [sequences, g, d_h]; position_id int64 [sequences].
  void append(const std::vector<size_t>& sequences, const at::Tensor& key, const at::Tensor& value,
              const at::Tensor& position_id);

  int64_t length(size_t sequence) const { return length_[sequence]; }
  const at::Tensor& key() const { return key_; }
  const at::Tensor& value() const { return value_; }
  const at::Tensor& position_id() const { return position_id_; }
  // What `ops::attention` takes for these sequences: int64 on the CPU.
  at::Tensor begins(const std::vector<size_t>& sequences) const;
  at::Tensor lengths(const std::vector<size_t>& sequences) const;
  int64_t bytes() const;  // of rows in use

 private:
  void make_room(int64_t rows_each);

  at::Tensor key_, value_, position_id_;
  std::vector<int64_t> begin_, length_, capacity_;
};

using KvCache = std::vector<LayerCache>;  // one a decoder layer

}  // namespace espalier
