// SPDX-License-Identifier: Apache-2.0
// The oracle of attention_probe and attention_growth: the whole masked softmax in float64, from which rows and columns
// are read. Knows nothing of log-sum-exp; the lse that the ops are given is computed here from the definition.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "espalier/ops.h"
#include "tests/support/tensors.h"

namespace espalier::test {

struct ProbeCase {
  std::vector<int64_t> sequences;  // where packed sequences begin, and the end
  double scale = 1.0;
  bool is_causal = true;
  int64_t window = 0;
  std::vector<int64_t> position = {};
};

struct Layer {
  at::Tensor query, key, lse;  // [n, h, d], [n, g, d], [h, n]
};

struct Groups {
  std::vector<int64_t> rows, row_begin = {0}, columns, column_begin = {0};

  void add(const std::vector<int64_t>& more_rows, const std::vector<int64_t>& more_columns) {
    rows.insert(rows.end(), more_rows.begin(), more_rows.end());
    columns.insert(columns.end(), more_columns.begin(), more_columns.end());
    row_begin.push_back(static_cast<int64_t>(rows.size()));
    column_begin.push_back(static_cast<int64_t>(columns.size()));
  }
};

inline std::vector<int64_t> range(int64_t first, int64_t last) {
  std::vector<int64_t> values;
  for (int64_t i = first; i < last; ++i) values.push_back(i);
  return values;
}

// Probabilities of one layer, and the log of each row's normaliser.
class Softmax {
 public:
  Softmax(const Layer& layer, const ProbeCase& c)
      : n_(layer.query.size(0)),
        h_(layer.query.size(1)),
        p_(static_cast<size_t>(h_ * n_ * n_)),
        lse_(static_cast<size_t>(h_ * n_), -std::numeric_limits<double>::infinity()) {
    const std::vector<double> query = to_doubles(layer.query), key = to_doubles(layer.key);
    const int64_t g = layer.key.size(1), d = layer.query.size(2);
    for (size_t s = 0; s + 1 < c.sequences.size(); ++s) {
      for (int64_t head = 0; head < h_; ++head) {
        for (int64_t i = c.sequences[s]; i < c.sequences[s + 1]; ++i) {
          double sum = 0.0;
          for (int64_t j = c.sequences[s]; j < c.sequences[s + 1]; ++j) {
            if ((c.is_causal && j > i) || (c.window > 0 && c.position[i] - c.position[j] >= c.window)) continue;
            double score = 0.0;
            for (int64_t k = 0; k < d; ++k)
              score += query[(i * h_ + head) * d + k] * key[(j * g + head * g / h_) * d + k];
            sum += p_[(head * n_ + i) * n_ + j] = std::exp(c.scale * score);
          }
          for (int64_t j = 0; j < n_ && sum > 0.0; ++j) p_[(head * n_ + i) * n_ + j] /= sum;
          lse_[head * n_ + i] = std::log(sum);
        }
      }
    }
  }

  double at(int64_t head, int64_t row, int64_t column) const { return p_[(head * n_ + row) * n_ + column]; }
  double lse(int64_t head, int64_t row) const { return lse_[head * n_ + row]; }
  int64_t num_heads() const { return h_; }

 private:
  int64_t n_, h_;
  std::vector<double> p_;    // [h, n, n]
  std::vector<double> lse_;  // [h, n]
};

// Random queries and keys, lse (float32) from the softmax.
inline Layer random_layer(int64_t n, int64_t h, int64_t g, int64_t d, at::ScalarType dtype, const ProbeCase& c,
                          uint64_t seed = 1) {
  Layer layer{random_tensor({n, h, d}, dtype, seed), random_tensor({n, g, d}, dtype, seed + 100), at::Tensor()};
  const Softmax softmax(layer, c);
  layer.lse = random_tensor({h, n});
  for (int64_t head = 0; head < h; ++head) {
    for (int64_t i = 0; i < n; ++i)
      layer.lse.mutable_data_ptr<float>()[head * n + i] = static_cast<float>(softmax.lse(head, i));
  }
  return layer;
}

// The same probe with query rows and keys apart: only the queries that are asked for, last one first, and the keys from
// row `begin` on of a larger buffer, whose other rows are NaN.
struct Apart {
  Layer layer;
  Groups groups;
  std::vector<int64_t> own_key, position;
};
inline at::Tensor inside_buffer(const at::Tensor& rows, int64_t begin, int64_t slack) {
  std::vector<int64_t> sizes = rows.sizes().vec();
  sizes[0] += begin + slack;
  const at::Tensor buffer = random_tensor(sizes, rows.scalar_type());
  buffer.fill_(std::numeric_limits<double>::quiet_NaN());
  buffer.narrow(0, begin, rows.size(0)).copy_(rows);
  return buffer;
}
inline Apart apart(const Layer& layer, const Groups& groups, const ProbeCase& c, int64_t begin, int64_t slack) {
  std::vector<int64_t> asked = groups.rows;
  std::sort(asked.rbegin(), asked.rend());
  asked.erase(std::unique(asked.begin(), asked.end()), asked.end());
  Apart out{.layer = {layer.query.index_select(0, int64_tensor(asked)), inside_buffer(layer.key, begin, slack),
                      layer.lse.index_select(1, int64_tensor(asked))},
            .groups = groups,
            .own_key = asked,
            .position = std::vector<int64_t>(begin + layer.key.size(0) + slack, 1 << 30)};
  for (int64_t& own : out.own_key) own += begin;
  for (int64_t& column : out.groups.columns) column += begin;
  for (int64_t& row : out.groups.rows) row = std::find(asked.begin(), asked.end(), row) - asked.begin();
  std::copy(c.position.begin(), c.position.end(), out.position.begin() + begin);
  return out;
}

// In attention_probe's layout.
inline std::vector<double> probe_oracle(const Softmax& softmax, const Groups& groups, ops::HeadReduction heads,
                                        bool reduce_rows) {
  const bool each = heads == ops::HeadReduction::kEach;
  const size_t num_columns = groups.columns.size(), num_rows = reduce_rows ? 1 : groups.rows.size();
  std::vector<double> out((each ? softmax.num_heads() : 1) * num_rows * num_columns, 0.0);
  for (size_t group = 0; group + 1 < groups.row_begin.size(); ++group) {
    const int64_t first = groups.row_begin[group], last = groups.row_begin[group + 1];
    for (int64_t j = groups.column_begin[group]; j < groups.column_begin[group + 1]; ++j) {
      for (int64_t i = first; i < last; ++i) {
        const double share = reduce_rows ? 1.0 / static_cast<double>(last - first) : 1.0;
        double mean = 0.0, largest = 0.0;
        for (int64_t head = 0; head < softmax.num_heads(); ++head) {
          const double p = softmax.at(head, groups.rows[i], groups.columns[j]);
          if (each) out[(head * num_rows + (reduce_rows ? 0 : i)) * num_columns + j] += share * p;
          mean += p / static_cast<double>(softmax.num_heads());
          largest = std::max(largest, p);
        }
        if (!each)
          out[(reduce_rows ? 0 : i) * num_columns + j] += share * (heads == ops::HeadReduction::kMax ? largest : mean);
      }
    }
  }
  return out;
}

}  // namespace espalier::test
