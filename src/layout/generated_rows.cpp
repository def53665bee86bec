// SPDX-License-Identifier: Apache-2.0
#include "layout/generated_rows.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/pad.h>
#include <ATen/ops/stack.h>

#include <utility>

namespace espalier {

namespace {

at::Tensor others_of(const TokenLayout& layout) {
  const int64_t n = layout.num_tokens();
  const at::Tensor is_other =
      at::ones({n}, layout.image_tokens.options().dtype(at::kBool)).index_fill(0, layout.image_tokens, false);
  return indices_of(is_other, n - layout.num_image_tokens());
}

// rows [h, r, c]: the heads first, then the mean over rows.
at::Tensor reduced(const at::Tensor& rows, AttentionProbe::Heads heads) {
  switch (heads) {
    case AttentionProbe::Heads::kMax:
      return rows.amax(0).mean(0);
    case AttentionProbe::Heads::kEach:
      return rows.mean(1);
    case AttentionProbe::Heads::kMean:
    case AttentionProbe::Heads::kJoint:  // refused
      break;
  }
  return rows.mean(0).mean(0);
}

// bool [KV heads, m] -> [h, 1, m].
at::Tensor of_query_heads(const at::Tensor& mask, int64_t heads) {
  return mask.repeat_interleave(heads / mask.size(0), 0).unsqueeze(1);
}

at::Tensor signal_of(const AttentionProbe& probe, const StepAgain& again, const std::vector<at::Tensor>& collected) {
  const TokenLayout& layout = again.layout;
  const int64_t columns = collected.back().size(1);
  std::vector<at::Tensor> padded;  // to the columns of the newest
  for (const at::Tensor& row : collected) padded.push_back(at::pad(row, {0, columns - row.size(1)}));
  const at::Tensor rows = at::stack(padded, 1);  // [h, r, n + generated]
  at::Tensor seen = rows.index_select(2, layout.image_tokens);
  if (again.left.mask.defined()) seen = seen * of_query_heads(again.left.mask, rows.size(0));
  if (probe.with_others)
    seen = at::cat({seen, rows.index_select(2, others_of(layout)), rows.slice(2, layout.num_tokens())}, 2);
  return reduced(seen, probe.heads);
}

}  // namespace

bool reads_newest(const AttentionProbe& probe) {
  return probe.rows == AttentionProbe::Rows::kLastToken || probe.rows == AttentionProbe::Rows::kGenerated;
}

at::Tensor newest_columns(const AttentionProbe& probe, const TokenLayout& layout) {
  return probe.with_others ? at::cat({layout.image_tokens, others_of(layout)}) : layout.image_tokens;
}

bool GeneratedRows::is_wanted(const StepAgain& again, size_t j, int64_t generated) {
  return std::get<AttentionProbe>(again.needs[j]).rows == AttentionProbe::Rows::kGenerated || again.is_due(generated);
}

void GeneratedRows::add(size_t i, size_t j, at::Tensor row) {
  if (rows_.size() <= i) rows_.resize(i + 1);
  if (rows_[i].size() <= j) rows_[i].resize(j + 1);
  rows_[i][j].push_back(std::move(row));
}

std::vector<at::Tensor> GeneratedRows::take(size_t i, const StepAgain& again) {
  std::vector<at::Tensor> signals;
  for (size_t j = 0; j < again.needs.size(); ++j)
    signals.push_back(signal_of(std::get<AttentionProbe>(again.needs[j]), again, std::exchange(rows_[i][j], {})));
  return signals;
}

}  // namespace espalier
