// SPDX-License-Identifier: Apache-2.0
// The tensor side shared by the ops that recompute attention probabilities (attention_probe, attention_growth): their
// checks, and the step from checked tensors to the raw pointers of attention_probe.h. Every route into a kernel (C++,
// torch.ops, Meta, composed) passes the checks.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string_view>

#include "kernels/ops/attention_probe/attention_probe.h"
#include "kernels/support/row_arguments.h"

namespace espalier::kernels {

// One layer: query [nq, h, d], key [nk, g, d] of one dtype, lse [h, nq] float32 (float64 for float64), all on one
// device.
void check_probe_layer(const char* op, const at::Tensor& query, const at::Tensor& key, const at::Tensor& lse);

// rows [r], columns [c] int64 on query's device; row_begin, column_begin int64 [groups + 1] on the CPU, from 0 to r and
// to c; position [nk] and own_key [nq], where causality or a window needs them.
void check_probe_groups(const char* op, const at::Tensor& query, const at::Tensor& key, const at::Tensor& rows,
                        const at::Tensor& row_begin, const at::Tensor& columns, const at::Tensor& column_begin,
                        bool is_causal, int64_t window, const std::optional<at::Tensor>& position,
                        const std::optional<at::Tensor>& own_key);

// "mean", "max" or "each".
ProbeHeads probe_heads(const char* op, std::string_view name);

// Pointers to a layer and the tensors that keep them alive. Tokens may be strided; other layouts are copied.
struct LayerPointers {
  at::Tensor query, key, lse;
  ProbeLayer layer;

  LayerPointers(const char* op, const at::Tensor& query, const at::Tensor& key, const at::Tensor& lse);
};

// Pointers to the groups of checked arguments: `rows`, `columns`, `position` and `own_key` on their own device, the
// begins on the CPU.
struct GroupPointers {
  at::Tensor rows, row_begin, columns, column_begin, position, own_key;
  ProbeShape shape;

  GroupPointers(const char* op, const at::Tensor& query, const at::Tensor& key, const at::Tensor& rows,
                const at::Tensor& row_begin, const at::Tensor& columns, const at::Tensor& column_begin, double scale,
                bool is_causal, int64_t window, const std::optional<at::Tensor>& position,
                const std::optional<at::Tensor>& own_key);
};

}  // namespace espalier::kernels
