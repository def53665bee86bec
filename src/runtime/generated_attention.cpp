// SPDX-License-Identifier: Apache-2.0
#include "runtime/generated_attention.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/zeros.h>

#include <tuple>
#include <vector>

#include "espalier/ops.h"
#include "model/decoder.h"
#include "runtime/signals.h"

namespace espalier {

at::Tensor generated_attention(const DecoderConfig& config, const KvArena& arena, const SequenceKv& kv, int layer,
                               int64_t generated, const at::Tensor& query) {
  std::vector<at::Tensor> parts;
  const KvRun* selected = nullptr;
  for (const KvRun& run : kv.runs(layer)) {
    parts.push_back(arena.key(layer).narrow(0, run.begin, run.length + run.held));
    if (run.is_selected()) selected = &run;
  }
  const at::Tensor key = parts.size() == 1 ? parts[0] : at::cat(parts);
  const int64_t rows = key.size(0);
  const double scale = attention_scale(config);
  const at::Tensor lse = std::get<1>(ops::attention({.query = query,
                                                     .key = key,
                                                     .value = key,
                                                     .query_begin = offsets({0, 1}),
                                                     .key_begin = offsets({0}),
                                                     .key_length = offsets({rows}),
                                                     .scale = scale}));
  const at::TensorOptions longs = at::TensorOptions(at::kLong).device(query.device());
  const at::Tensor seen = ops::attention_probe({.layer = {query, key, lse},
                                                .rows = at::zeros({1}, longs),
                                                .row_begin = offsets({0, 1}),
                                                .columns = at::arange(rows, longs),
                                                .column_begin = offsets({0, rows}),
                                                .scale = scale,
                                                .is_causal = false,
                                                .heads = ops::HeadReduction::kEach});
  if (!selected) return seen;
  // Rows of the prompt to the places of their tokens.
  const int64_t prompt_rows = rows - generated, heads = seen.size(0);
  const at::Tensor tokens = selected->tokens.repeat_interleave(heads / selected->tokens.size(0), 0);
  const at::Tensor of_prompt =
      at::zeros({heads, selected->num_tokens}, seen.options()).scatter(1, tokens, seen.slice(1, 0, prompt_rows));
  return at::cat({of_prompt, seen.slice(1, prompt_rows)}, 1);
}

}  // namespace espalier
