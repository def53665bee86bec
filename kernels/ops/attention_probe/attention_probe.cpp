// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
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

void check_probe_layer(const char* op, const at::Tensor& query, const at::Tensor& key, const at::Tensor& lse) {
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

void check_probe_groups(const char* op, const at::Tensor& query, const at::Tensor& key, const at::Tensor& rows,
                        const at::Tensor& row_begin, const at::Tensor& columns, const at::Tensor& column_begin,
                        bool is_causal, int64_t window, const std::optional<at::Tensor>& position,
                        const std::optional<at::Tensor>& own_key) {
  check_index(op, "rows", rows, query);
  check_index(op, "columns", columns, query);
  check_offsets(op, "row_begin", row_begin, rows.size(0));
  check_offsets(op, "column_begin", column_begin, columns.size(0));
  TORCH_CHECK(column_begin.is_meta() ||
                  (column_begin.const_data_ptr<int64_t>()[0] == 0 &&
                   column_begin.contiguous().const_data_ptr<int64_t>()[column_begin.numel() - 1] == columns.size(0)),
              op, ": column_begin must go from 0 to ", columns.size(0), ", so that every column is in a group");
  TORCH_CHECK(row_begin.size(0) == column_begin.size(0), op,
              ": row_begin and column_begin must name the same groups, got ", row_begin.size(0) - 1, " and ",
              column_begin.size(0) - 1);
  TORCH_CHECK(window >= 0, op, ": window must be 0 (none) or positive, got ", window);
  if (given(own_key)) {
    check_index(op, "own_key", *own_key, query);
    TORCH_CHECK(own_key->size(0) == query.size(0), op, ": own_key [", query.size(0), "] expected, got ",
                own_key->sizes());
  } else {
    TORCH_CHECK(query.size(0) == key.size(0) || (!is_causal && window == 0), op,
                ": causality and windows need own_key where query and key have different rows, got ", query.size(0),
                " and ", key.size(0));
  }
  if (window == 0) return;
  TORCH_CHECK(given(position), op, ": window > 0 needs position [nk]");
  check_index(op, "position", *position, query);
  TORCH_CHECK(position->size(0) == key.size(0), op, ": position [", key.size(0), "] expected, got ", position->sizes());
}

ProbeHeads probe_heads(const char* op, std::string_view name) {
  if (name == "mean") return ProbeHeads::kMean;
  if (name == "max") return ProbeHeads::kMax;
  TORCH_CHECK(name == "each", op, ": heads must be mean, max or each, got ", name);
  return ProbeHeads::kEach;
}

namespace {

// Heads behind each other inside a token, tokens any distance apart (a slice of a fused projection needs no copy).
at::Tensor with_dense_tokens(const at::Tensor& x) {
  const bool dense = x.stride(2) == 1 && (x.size(1) == 1 || x.stride(1) == x.size(2));
  return dense ? x : x.contiguous();
}

}  // namespace

LayerPointers::LayerPointers(const char* op, const at::Tensor& query_in, const at::Tensor& key_in,
                             const at::Tensor& lse_in) {
  check_probe_layer(op, query_in, key_in, lse_in);
  query = with_dense_tokens(query_in);
  key = with_dense_tokens(key_in);
  lse = lse_in.contiguous();
  layer = {query.const_data_ptr(), key.const_data_ptr(), lse.const_data_ptr<float>(), query.stride(0), key.stride(0)};
}

GroupPointers::GroupPointers(const char* op, const at::Tensor& query, const at::Tensor& key, const at::Tensor& rows_in,
                             const at::Tensor& row_begin_in, const at::Tensor& columns_in,
                             const at::Tensor& column_begin_in, double scale, bool is_causal, int64_t window,
                             const std::optional<at::Tensor>& position_in,
                             const std::optional<at::Tensor>& own_key_in) {
  check_probe_groups(op, query, key, rows_in, row_begin_in, columns_in, column_begin_in, is_causal, window, position_in,
                     own_key_in);
  if (given(own_key_in)) own_key = own_key_in->contiguous();
  if (query.device().is_cpu()) {
    check_rows_in_range(op, rows_in, query.size(0));
    check_rows_in_range(op, columns_in, key.size(0));
    if (own_key.defined()) check_rows_in_range(op, own_key, key.size(0));
  }
  rows = rows_in.contiguous();
  row_begin = row_begin_in.contiguous();
  columns = columns_in.contiguous();
  column_begin = column_begin_in.contiguous();
  if (window > 0) position = position_in->contiguous();
  shape = {.type = element_type(query, op),
           .num_queries = query.size(0),
           .num_heads = query.size(1),
           .num_kv_heads = key.size(1),
           .d = query.size(2),
           .scale = static_cast<float>(scale),
           .is_causal = is_causal,
           .window = window,
           .own_key = own_key.defined() ? own_key.const_data_ptr<int64_t>() : nullptr,
           .position = window > 0 ? position.const_data_ptr<int64_t>() : nullptr,
           .rows = rows.const_data_ptr<int64_t>(),
           .row_begin = row_begin.const_data_ptr<int64_t>(),
           .columns = columns.const_data_ptr<int64_t>(),
           .column_begin = column_begin.const_data_ptr<int64_t>(),
           .num_groups = row_begin.numel() - 1};
}

}  // namespace espalier::kernels

namespace espalier::ops {

namespace {

using ProbeSignature = Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                              const Tensor&, double, bool, std::string_view, bool, int64_t, const OptionalTensor&,
                              const OptionalTensor&);

Tensor call_attention_probe(const Tensor& query, const Tensor& key, const Tensor& lse, const Tensor& rows,
                            const Tensor& row_begin, const Tensor& columns, const Tensor& column_begin, double scale,
                            bool is_causal, std::string_view heads, bool reduce_rows, int64_t window,
                            const OptionalTensor& position, const OptionalTensor& own_key) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("espalier::attention_probe", "").typed<ProbeSignature>();
  return op.call(query, key, lse, rows, row_begin, columns, column_begin, scale, is_causal, heads, reduce_rows, window,
                 position, own_key);
}

const char* name_of(HeadReduction heads) {
  switch (heads) {
    case HeadReduction::kMean:
      return "mean";
    case HeadReduction::kMax:
      return "max";
    case HeadReduction::kEach:
      return "each";
  }
  TORCH_CHECK(false, "attention_probe: unknown head reduction ", static_cast<int>(heads));
}

void check(const Tensor& query, const Tensor& key, const Tensor& lse, const Tensor& rows, const Tensor& row_begin,
           const Tensor& columns, const Tensor& column_begin, bool is_causal, std::string_view heads, bool reduce_rows,
           int64_t window, const OptionalTensor& position, const OptionalTensor& own_key) {
  kernels::check_probe_layer("attention_probe", query, key, lse);
  kernels::check_probe_groups("attention_probe", query, key, rows, row_begin, columns, column_begin, is_causal, window,
                              position, own_key);
  kernels::probe_heads("attention_probe", heads);
  TORCH_CHECK(reduce_rows || row_begin.size(0) == 2, "attention_probe: rows can be kept apart for one group only, got ",
              row_begin.size(0) - 1, " groups");
}

Tensor attention_probe_meta(const Tensor& query, const Tensor& key, const Tensor& lse, const Tensor& rows,
                            const Tensor& row_begin, const Tensor& columns, const Tensor& column_begin, double,
                            bool is_causal, std::string_view heads, bool reduce_rows, int64_t window,
                            const OptionalTensor& position, const OptionalTensor& own_key) {
  if (has_plain_sizes(query, key, lse, rows, row_begin, columns, column_begin, position, own_key))
    check(query, key, lse, rows, row_begin, columns, column_begin, is_causal, heads, reduce_rows, window, position,
          own_key);
  std::vector<c10::SymInt> sizes;
  if (heads == "each") sizes.push_back(query.sym_size(1));
  if (!reduce_rows) sizes.push_back(rows.sym_size(0));
  sizes.push_back(columns.sym_size(0));
  return at::empty_symint(sizes, lse.options());
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

Tensor attention_probe_composed(const Tensor& query, const Tensor& key, const Tensor& lse, const Tensor& rows,
                                const Tensor& row_begin, const Tensor& columns, const Tensor& column_begin,
                                double scale, bool is_causal, std::string_view heads, bool reduce_rows, int64_t window,
                                const OptionalTensor& position, const OptionalTensor& own_key) {
  check(query, key, lse, rows, row_begin, columns, column_begin, is_causal, heads, reduce_rows, window, position,
        own_key);
  const Tensor row_starts = row_begin.contiguous(), column_starts = column_begin.contiguous();
  const int64_t* row_start = row_starts.const_data_ptr<int64_t>();
  const int64_t* column_start = column_starts.const_data_ptr<int64_t>();
  std::vector<Tensor> parts;
  for (int64_t i = 0; i + 1 < row_begin.numel(); ++i) {
    const Tensor row = rows.slice(0, row_start[i], row_start[i + 1]);
    const Tensor column = columns.slice(0, column_start[i], column_start[i + 1]);
    const Tensor own = kernels::given(own_key) ? own_key->index_select(0, row) : row;
    Tensor p =
        group_probabilities(query, key, lse, row, column, scale, visible(own, column, is_causal, window, position));
    if (heads == "mean") p = p.mean(0);
    if (heads == "max") p = p.amax(0);
    if (reduce_rows) p = row.size(0) > 0 ? p.mean(-2) : p.sum(-2);
    parts.push_back(p);
  }
  if (parts.empty())
    return at::zeros(heads == "each" ? std::vector<int64_t>{query.size(1), 0} : std::vector<int64_t>{0}, lse.options());
  return at::cat(parts, -1);
}

Tensor attention_probe_autograd(const Tensor& query, const Tensor& key, const Tensor& lse, const Tensor& rows,
                                const Tensor& row_begin, const Tensor& columns, const Tensor& column_begin,
                                double scale, bool is_causal, std::string_view heads, bool reduce_rows, int64_t window,
                                const OptionalTensor& position, const OptionalTensor& own_key) {
  if (query.scalar_type() == at::kDouble || wants_gradient(query, key, lse)) {
    return attention_probe_composed(query, key, lse, rows, row_begin, columns, column_begin, scale, is_causal, heads,
                                    reduce_rows, window, position, own_key);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return call_attention_probe(query, key, lse, rows, row_begin, columns, column_begin, scale, is_causal, heads,
                              reduce_rows, window, position, own_key);
}

}  // namespace

Tensor attention_probe(const Tensor& query, const Tensor& key, const Tensor& lse, const Tensor& rows,
                       const Tensor& row_begin, const Tensor& columns, const Tensor& column_begin, double scale,
                       bool is_causal, HeadReduction heads, bool reduce_rows, int64_t window,
                       const OptionalTensor& position, const OptionalTensor& own_key) {
  return call_attention_probe(query, key, lse, rows, row_begin, columns, column_begin, scale, is_causal, name_of(heads),
                              reduce_rows, window, position, own_key);
}

TORCH_LIBRARY_IMPL(espalier, Meta, m) {
  m.impl("attention_probe", attention_probe_meta);
}
TORCH_LIBRARY_IMPL(espalier, Autograd, m) {
  m.impl("attention_probe", attention_probe_autograd);
}

}  // namespace espalier::ops
