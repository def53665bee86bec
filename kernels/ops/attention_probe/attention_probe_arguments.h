// SPDX-License-Identifier: Apache-2.0
// The tensor side shared by the ops that recompute attention probabilities (attention_probe, attention_growth): their
// checks, and the step from checked tensors to the raw pointers of attention_probe.h. Every route into a kernel (C++,
// torch.ops, Meta, composed) passes the checks.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string_view>

#include "espalier/ops.h"
#include "kernels/ops/attention_probe/attention_probe.h"
#include "kernels/support/row_arguments.h"

namespace espalier::kernels {

// query [nq, h, d], key [nk, g, d] of one dtype, lse [h, nq] float32 (float64 for float64), all on one device.
void check_probe_layer(const char* op, const ops::AttendedLayer& layer);

// What both ops ask of one layer's queries and keys.
struct ProbeGroups {
  const at::Tensor &query, &key;
  const at::Tensor &rows, &row_begin, &columns, &column_begin;
  double scale;
  bool is_causal;
  int64_t window;
  const std::optional<at::Tensor>&position, &own_key;
};
ProbeGroups groups_of(const ops::AttentionProbeCall& call);
ProbeGroups groups_of(const ops::AttentionGrowthCall& call);

// rows [r], columns [c] int64 on query's device; row_begin, column_begin int64 [groups + 1] on the CPU, from 0 to r and
// to c; position [nk] and own_key [nq], where causality or a window needs them.
void check_probe_groups(const char* op, const ProbeGroups& groups);

// Rows are kept apart for one group only.
void check_probe_reduction(const ops::AttentionProbeCall& call);

// [c] or [r, c], behind heads where they stay apart.
at::Tensor empty_probe_result(const ops::AttentionProbeCall& call);

// Pointers to a checked layer and the tensors that keep them alive. Tokens may be strided; other layouts are copied.
struct LayerPointers {
  at::Tensor query, key, lse;
  ProbeLayer layer;

  LayerPointers(const char* op, const ops::AttendedLayer& layer);
};

// Pointers to checked groups: `rows`, `columns`, `position` and `own_key` on their own device, the begins on the CPU.
struct GroupPointers {
  at::Tensor rows, row_begin, columns, column_begin, position, own_key;
  ProbeShape shape;

  GroupPointers(const char* op, const ProbeGroups& groups);
};

}  // namespace espalier::kernels

namespace espalier::ops {

// The arguments as the dispatcher passes them.
using AttentionProbeSignature = Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                       const Tensor&, const Tensor&, double, bool, std::string_view, bool, int64_t,
                                       const OptionalTensor&, const OptionalTensor&);

}  // namespace espalier::ops
