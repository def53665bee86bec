// SPDX-License-Identifier: Apache-2.0
// Inputs of attention_probe and attention_growth at the project's shapes, and their formula in torch operators: packed
// sequences whose first tokens are the image's, probed by the rows behind them, so that nothing is hidden.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/matmul.h>

#include <cmath>
#include <vector>

#include "bench/kernels/op_timing.h"

namespace espalier::bench {

struct ProbeLayer {
  at::Tensor query, key, lse;
};

struct ProbeInputs {
  int64_t heads, head_dim, batch, tokens, num_rows;
  double scale;
  at::Tensor rows, row_begin, columns, column_begin;  // one group a sequence

  ProbeInputs(const OpBench& bench, int64_t num_heads, int64_t d, int64_t sequences, int64_t columns_each,
              int64_t rows_each)
      : heads(num_heads),
        head_dim(d),
        batch(sequences),
        tokens(columns_each),
        num_rows(rows_each),
        scale(1.0 / std::sqrt(static_cast<double>(d))),
        row_begin(at::arange(0, sequences * rows_each + 1, rows_each, at::kLong)),
        column_begin(at::arange(0, sequences * columns_each + 1, columns_each, at::kLong)) {
    std::vector<at::Tensor> all_rows, all_columns;
    for (int64_t s = 0; s < sequences; ++s) {
      const int64_t begin = s * length();
      all_columns.push_back(bench.range(begin, begin + columns_each));
      all_rows.push_back(bench.range(begin + columns_each, begin + length()));
    }
    rows = at::cat(all_rows);
    columns = at::cat(all_columns);
  }

  int64_t length() const { return tokens + num_rows; }

  ProbeLayer layer(const OpBench& bench, int64_t kv_heads, at::ScalarType dtype) const {
    const int64_t n = batch * length();
    return {bench.randn({n, heads, head_dim}, dtype), bench.randn({n, kv_heads, head_dim}, dtype),
            at::full({heads, n}, 8.0F, at::TensorOptions().device(bench.device()))};
  }

  // Mean over heads and rows, sequence by sequence: [batch · tokens].
  at::Tensor head_means(const ProbeLayer& layer) const {
    std::vector<at::Tensor> means;
    for (int64_t s = 0; s < batch; ++s) {
      const int64_t begin = s * length();
      const at::Tensor q = layer.query.narrow(0, begin + tokens, num_rows).transpose(0, 1);
      at::Tensor k = layer.key.narrow(0, begin, tokens).permute({1, 2, 0});
      if (k.size(0) < heads) k = k.repeat_interleave(heads / k.size(0), 0);
      const at::Tensor scores = at::matmul(q, k).to(at::kFloat) * scale;
      const at::Tensor lse = layer.lse.narrow(1, begin + tokens, num_rows).unsqueeze(-1);
      means.push_back((scores - lse).exp().mean(0).mean(0));
    }
    return at::cat(means);
  }
};

}  // namespace espalier::bench
