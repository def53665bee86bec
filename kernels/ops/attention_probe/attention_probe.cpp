// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/amax.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/isneginf.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <limits>
#include <string_view>
#include <vector>

#include "espalier/ops.h"
#include "kernels/ops/attention_probe/attention_probe_arguments.h"
#include "kernels/support/autograd_fallback.h"
#include "kernels/support/dispatch.h"
#include "kernels/support/meta_shapes.h"

namespace espalier::kernels {

namespace {

bool given(const std::optional<at::Tensor>& t) {
  return t.has_value() && t->defined();
}

void check_index(const char* op, const char* name, const at::Tensor& index, const at::Tensor& query) {
  TORCH_CHECK(index.scalar_type() == at::kLong && index.dim() == 1 && index.device() == query.device(), op, ": ", name,
              " must be int64 [count] on ", query.device(), ", got ", index.scalar_type(), " ", index.sizes(), " on ",
              index.device());
}

}  // namespace

void check_probe_layer(const char* op, const ops::AttendedLayer& layer) {
  const auto& [query, key, lse] = layer;
  TORCH_CHECK(query.dim() == 3 && key.dim() == 3 && query.size(2) == key.size(2) && query.size(2) > 0, op,
              ": query [nq, h, d] and key [nk, g, d] expected, got ", query.sizes(), " and ", key.sizes());
  TORCH_CHECK(key.size(1) > 0 && query.size(1) > 0 && query.size(1) % key.size(1) == 0, op,
              ": query heads must be a multiple of key heads, got ", query.size(1), " and ", key.size(1));
  TORCH_CHECK(query.is_floating_point() && query.scalar_type() == key.scalar_type(), op,
              ": query and key must have one floating dtype, got ", query.scalar_type(), " and ", key.scalar_type());
  const at::ScalarType wanted = query.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  TORCH_CHECK(
      lse.dim() == 2 && lse.size(0) == query.size(1) && lse.size(1) == query.size(0) && lse.scalar_type() == wanted, op,
      ": lse ", wanted, " [", query.size(1), ", ", query.size(0), "] expected, got ", lse.scalar_type(), " ",
      lse.sizes());
  TORCH_CHECK(key.device() == query.device() && lse.device() == query.device(), op,
              ": query, key and lse must be on one device, got ", query.device(), ", ", key.device(), " and ",
              lse.device());
}

ProbeGroups groups_of(const ops::AttentionProbeCall& c) {
  return {c.layer.query, c.layer.key, c.rows,   c.row_begin, c.columns, c.column_begin,
          c.scale,       c.is_causal, c.window, c.position,  c.own_key};
}

ProbeGroups groups_of(const ops::AttentionGrowthCall& c) {
  return {c.lower.query, c.lower.key, c.rows,   c.row_begin, c.columns, c.column_begin,
          c.scale,       true,        c.window, c.position,  c.own_key};
}

void check_probe_groups(const char* op, const ProbeGroups& in) {
  check_index(op, "rows", in.rows, in.query);
  check_index(op, "columns", in.columns, in.query);
  check_offsets(op, "row_begin", in.row_begin, in.rows.size(0));
  check_offsets(op, "column_begin", in.column_begin, in.columns.size(0));
  TORCH_CHECK(
      in.column_begin.is_meta() ||
          (in.column_begin.const_data_ptr<int64_t>()[0] == 0 &&
           in.column_begin.contiguous().const_data_ptr<int64_t>()[in.column_begin.numel() - 1] == in.columns.size(0)),
      op, ": column_begin must go from 0 to ", in.columns.size(0), ", so that every column is in a group");
  TORCH_CHECK(in.row_begin.size(0) == in.column_begin.size(0), op,
              ": row_begin and column_begin must name the same groups, got ", in.row_begin.size(0) - 1, " and ",
              in.column_begin.size(0) - 1);
  TORCH_CHECK(in.window >= 0, op, ": window must be 0 (none) or positive, got ", in.window);
  if (given(in.own_key)) {
    check_index(op, "own_key", *in.own_key, in.query);
    TORCH_CHECK(in.own_key->size(0) == in.query.size(0), op, ": own_key [", in.query.size(0), "] expected, got ",
                in.own_key->sizes());
  } else {
    TORCH_CHECK(in.query.size(0) == in.key.size(0) || (!in.is_causal && in.window == 0), op,
                ": causality and windows need own_key where query and key have different rows, got ", in.query.size(0),
                " and ", in.key.size(0));
  }
  if (in.window == 0) return;
  TORCH_CHECK(given(in.position), op, ": window > 0 needs position [nk]");
  check_index(op, "position", *in.position, in.query);
  TORCH_CHECK(in.position->size(0) == in.key.size(0), op, ": position [", in.key.size(0), "] expected, got ",
              in.position->sizes());
}

void check_probe_reduction(const ops::AttentionProbeCall& call) {
  ops::choice_name(call.heads);
  TORCH_CHECK(call.reduce_rows || call.row_begin.size(0) == 2,
              "attention_probe: rows can be kept apart for one group only, got ", call.row_begin.size(0) - 1,
              " groups");
}

at::Tensor empty_probe_result(const ops::AttentionProbeCall& call) {
  std::vector<c10::SymInt> sizes;
  if (call.heads == ops::HeadReduction::kEach) sizes.push_back(call.layer.query.sym_size(1));
  if (!call.reduce_rows) sizes.push_back(call.rows.sym_size(0));
  sizes.push_back(call.columns.sym_size(0));
  return at::empty_symint(sizes, call.layer.lse.options());
}

namespace {

// Heads behind each other inside a token, tokens any distance apart (a slice of a fused projection needs no copy).
at::Tensor with_dense_tokens(const at::Tensor& x) {
  const bool dense = x.stride(2) == 1 && (x.size(1) == 1 || x.stride(1) == x.size(2));
  return dense ? x : x.contiguous();
}

}  // namespace

LayerPointers::LayerPointers(const char* op, const ops::AttendedLayer& in) {
  check_probe_layer(op, in);
  query = with_dense_tokens(in.query);
  key = with_dense_tokens(in.key);
  lse = in.lse.contiguous();
  layer = {query.const_data_ptr(), key.const_data_ptr(), lse.const_data_ptr<float>(), query.stride(0), key.stride(0)};
}

GroupPointers::GroupPointers(const char* op, const ProbeGroups& in) {
  check_probe_groups(op, in);
  if (given(in.own_key)) own_key = in.own_key->contiguous();
  if (in.query.device().is_cpu()) {
    check_rows_in_range(op, in.rows, in.query.size(0));
    check_rows_in_range(op, in.columns, in.key.size(0));
    if (own_key.defined()) check_rows_in_range(op, own_key, in.key.size(0));
  }
  rows = in.rows.contiguous();
  row_begin = in.row_begin.contiguous();
  columns = in.columns.contiguous();
  column_begin = in.column_begin.contiguous();
  if (in.window > 0) position = in.position->contiguous();
  shape = {.type = element_type(in.query, op),
           .num_queries = in.query.size(0),
           .num_heads = in.query.size(1),
           .num_kv_heads = in.key.size(1),
           .d = in.query.size(2),
           .scale = static_cast<float>(in.scale),
           .is_causal = in.is_causal,
           .window = in.window,
           .own_key = own_key.defined() ? own_key.const_data_ptr<int64_t>() : nullptr,
           .position = in.window > 0 ? position.const_data_ptr<int64_t>() : nullptr,
           .rows = rows.const_data_ptr<int64_t>(),
           .row_begin = row_begin.const_data_ptr<int64_t>(),
           .columns = columns.const_data_ptr<int64_t>(),
           .column_begin = column_begin.const_data_ptr<int64_t>(),
           .num_groups = row_begin.numel() - 1};
}

}  // namespace espalier::kernels

namespace espalier::ops {

namespace {

void check(const AttentionProbeCall& call) {
  kernels::check_probe_layer("attention_probe", call.layer);
  kernels::check_probe_groups("attention_probe", kernels::groups_of(call));
  kernels::check_probe_reduction(call);
}

Tensor attention_probe_meta(const AttentionProbeCall& in) {
  const auto& [query, key, lse] = in.layer;
  if (has_plain_sizes(query, key, lse, in.rows, in.row_begin, in.columns, in.column_begin, in.position, in.own_key))
    check(in);
  return kernels::empty_probe_result(in);
}

// True where a row, whose own key is given, sees a column: [r, c].
Tensor visible(const Tensor& own, const Tensor& column, bool is_causal, int64_t window,
               const OptionalTensor& position) {
  Tensor seen = (column.unsqueeze(0) >= 0).expand({own.size(0), column.size(0)});
  if (is_causal) seen = seen.logical_and(column.unsqueeze(0) <= own.unsqueeze(1));
  if (window > 0) {
    const Tensor row_position = position->index_select(0, own).unsqueeze(1);
    const Tensor column_position = position->index_select(0, column).unsqueeze(0);
    seen = seen.logical_and(row_position - window < column_position);
  }
  return seen;
}

// Probabilities of one group, [h, r, c]. Hidden places are set before the exponential: 0 in value and in gradient, -inf
// in lse included.
Tensor group_probabilities(const Tensor& query, const Tensor& key, const Tensor& lse, const Tensor& row,
                           const Tensor& column, double scale, const Tensor& seen) {
  const at::ScalarType compute = lse.scalar_type();
  const int64_t repeat = query.size(1) / key.size(1);
  const Tensor q = query.index_select(0, row).to(compute).transpose(0, 1);  // [h, r, d]
  const Tensor k =
      key.index_select(0, column).to(compute).repeat_interleave(repeat, 1).permute({1, 2, 0});  // [h, d, c]
  const Tensor l = lse.index_select(1, row).unsqueeze(-1);                                      // [h, r, 1]
  const Tensor hidden = seen.logical_not().unsqueeze(0).logical_or(at::isneginf(l));
  return (at::matmul(q, k) * scale - l).masked_fill(hidden, -std::numeric_limits<double>::infinity()).exp();
}

Tensor attention_probe_composed(const AttentionProbeCall& in) {
  check(in);
  const auto& [query, key, lse] = in.layer;
  const Tensor row_starts = in.row_begin.contiguous(), column_starts = in.column_begin.contiguous();
  const int64_t* row_start = row_starts.const_data_ptr<int64_t>();
  const int64_t* column_start = column_starts.const_data_ptr<int64_t>();
  std::vector<Tensor> parts;
  for (int64_t i = 0; i + 1 < in.row_begin.numel(); ++i) {
    const Tensor row = in.rows.slice(0, row_start[i], row_start[i + 1]);
    const Tensor column = in.columns.slice(0, column_start[i], column_start[i + 1]);
    const Tensor own = kernels::given(in.own_key) ? in.own_key->index_select(0, row) : row;
    Tensor p = group_probabilities(query, key, lse, row, column, in.scale,
                                   visible(own, column, in.is_causal, in.window, in.position));
    if (in.heads == HeadReduction::kMean) p = p.mean(0);
    if (in.heads == HeadReduction::kMax) p = p.amax(0);
    if (in.reduce_rows) p = row.size(0) > 0 ? p.mean(-2) : p.sum(-2);
    parts.push_back(p);
  }
  if (parts.empty()) {
    const bool each = in.heads == HeadReduction::kEach;
    return at::zeros(each ? std::vector<int64_t>{query.size(1), 0} : std::vector<int64_t>{0}, lse.options());
  }
  return at::cat(parts, -1);
}

Tensor attention_probe_autograd(const AttentionProbeCall& in) {
  const auto& [query, key, lse] = in.layer;
  if (query.scalar_type() == at::kDouble || wants_gradient(query, key, lse)) return attention_probe_composed(in);
  at::AutoDispatchBelowADInplaceOrView below;
  return attention_probe(in);
}

}  // namespace

Tensor attention_probe(const AttentionProbeCall& c) {
  static const auto op = find_op<AttentionProbeSignature>("attention_probe");
  return op.call(c.layer.query, c.layer.key, c.layer.lse, c.rows, c.row_begin, c.columns, c.column_begin, c.scale,
                 c.is_causal, choice_name(c.heads), c.reduce_rows, c.window, c.position, c.own_key);
}

TORCH_LIBRARY_IMPL(espalier, Meta, m) {
  m.impl("attention_probe", Unpacked<AttentionProbeSignature, attention_probe_meta>::call);
}
TORCH_LIBRARY_IMPL(espalier, Autograd, m) {
  m.impl("attention_probe", Unpacked<AttentionProbeSignature, attention_probe_autograd>::call);
}

}  // namespace espalier::ops
