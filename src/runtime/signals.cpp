// SPDX-License-Identifier: Apache-2.0
#include "runtime/signals.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <cmath>

#include "espalier/ops.h"
#include "layout/generated_rows.h"
#include "model/decoder.h"

namespace espalier {

namespace {

ops::HeadReduction reduction(AttentionProbe::Heads heads) {
  switch (heads) {
    case AttentionProbe::Heads::kMax:
      return ops::HeadReduction::kMax;
    case AttentionProbe::Heads::kEach:
      return ops::HeadReduction::kEach;
    case AttentionProbe::Heads::kMean:
    case AttentionProbe::Heads::kJoint:  // heads are one by then
      return ops::HeadReduction::kMean;
  }
  TORCH_CHECK(false, "signals: a reduction of heads that is none");
}

// Groups of rows and columns behind each other, as the ops take them.
struct Blocks {
  at::Tensor rows, row_begin, columns, column_begin;
};

Blocks blocks_of(const AttentionProbe& probe, const TokenLayout& layout) {
  const int64_t n = layout.num_tokens();
  if (reads_newest(probe)) {
    const at::Tensor columns = newest_columns(probe, layout);
    return {at::full({1}, n - 1, layout.image_tokens.options()), offsets({0, 1}), columns,
            offsets({0, columns.size(0)})};
  }
  std::vector<at::Tensor> rows, columns;
  std::vector<int64_t> row_begin = {0}, column_begin = {0};
  for (const AttentionProbe::Group& group : probe.groups) {
    rows.push_back(group.rows);
    columns.push_back(group.columns.defined() ? group.columns : layout.image_tokens);
    row_begin.push_back(row_begin.back() + rows.back().size(0));
    column_begin.push_back(column_begin.back() + columns.back().size(0));
  }
  return {at::cat(rows), at::tensor(row_begin, at::kLong), at::cat(columns), at::tensor(column_begin, at::kLong)};
}

class DecoderSignal {
 public:
  explicit DecoderSignal(const SignalSource& source) : s_(source) {}

  at::Tensor operator()(const AttentionProbe& probe) const {
    Blocks blocks = blocks_of(probe, s_.layout);
    const auto found = s_.traces.find(probe.layer);
    if (found == s_.traces.end()) return look_ahead(probe, blocks);
    const ops::AttendedLayer& t = found->second;
    return probed(probe, t, blocks);
  }

  at::Tensor operator()(const AttentionGrowth& growth) const {
    const ops::AttendedLayer &lower = s_.traces.at(growth.lower), &upper = s_.traces.at(growth.upper);
    const int64_t n = s_.layout.num_tokens(), m = s_.layout.num_image_tokens();
    const at::Tensor last = at::full({1}, n - 1, s_.layout.image_tokens.options());
    ops::OptionalTensor hidden, direction;
    if (growth.pool.defined()) {
      hidden = s_.hidden;
      direction = s_.hidden.index_select(0, growth.pool).to(at::kFloat).mean(0, true);
    }
    return ops::attention_growth({.lower = lower,
                                  .upper = upper,
                                  .rows = last,
                                  .row_begin = offsets({0, 1}),
                                  .columns = s_.layout.image_tokens,
                                  .column_begin = offsets({0, m}),
                                  .scale = scale(),
                                  .relu_per_head = growth.relu_per_head,
                                  .window = s_.config.sliding_window,
                                  .position = position(),
                                  .hidden = hidden,
                                  .direction = direction,
                                  .cosine_weight = growth.cosine_weight});
  }

  at::Tensor operator()(const Tap& tap) const {
    switch (tap.what) {
      case Tap::What::kFinalNorm:
        return s_.final_norm(s_.hidden);
      case Tap::What::kKey:
        return s_.traces.at(tap.layer).key;
      case Tap::What::kHidden:
        return s_.hidden;
      case Tap::What::kVisionOutput:
      case Tap::What::kVisionClass:
      case Tap::What::kVisionKey:
      case Tap::What::kClipImage:
      case Tap::What::kClipText:
        break;
    }
    TORCH_CHECK(false, "signals: the decoder has no such tensor");
  }

 private:
  double scale() const { return attention_scale(s_.config); }
  ops::OptionalTensor position() const {
    return s_.config.sliding_window > 0 ? ops::OptionalTensor(s_.layout.position_id) : std::nullopt;
  }

  at::Tensor probed(const AttentionProbe& probe, ops::AttendedLayer layer, const Blocks& blocks) const {
    return ops::attention_probe({.layer = std::move(layer),
                                 .rows = blocks.rows,
                                 .row_begin = blocks.row_begin,
                                 .columns = blocks.columns,
                                 .column_begin = blocks.column_begin,
                                 .scale = scale(),
                                 .heads = reduction(probe.heads),
                                 .reduce_rows = probe.reduce_rows,
                                 .window = s_.config.sliding_window,
                                 .position = position()});
  }

  // A layer that has not run has no log-sum-exp. The last row's takes one query row against all keys; other rows the
  // whole pass.
  at::Tensor look_ahead(const AttentionProbe& probe, Blocks& blocks) const {
    const ops::AttendedLayer t = s_.look_ahead(probe.layer);
    const int64_t n = s_.layout.num_tokens(), window = s_.config.sliding_window;
    const int64_t first = reads_newest(probe) ? n - 1 : 0;
    ops::OptionalTensor key_position = position(), query_position = key_position;
    if (query_position) query_position = query_position->slice(0, first);
    const at::Tensor seen = std::get<1>(ops::attention({.query = t.query.slice(0, first),
                                                        .key = t.key,
                                                        .value = t.key,
                                                        .query_begin = offsets({0, n - first}),
                                                        .key_begin = offsets({0}),
                                                        .key_length = offsets({n}),
                                                        .scale = scale(),
                                                        .window = window,
                                                        .query_position = query_position,
                                                        .key_position = key_position}));
    const at::Tensor lse = first == 0 ? seen : at::cat({at::zeros({seen.size(0), first}, seen.options()), seen}, 1);
    return probed(probe, {t.query, t.key, lse}, blocks);
  }

  const SignalSource& s_;
};

// The class row of each crop against the crop's patches; row 0 of a crop is its class token.
at::Tensor class_attention(const VisionFacts& facts, const VisionLayerTrace& t, AttentionProbe::Heads heads) {
  const int64_t crops = t.output.size(0), p1 = t.output.size(1), p = p1 - 1;
  at::Tensor query = t.query, key = t.key, lse = t.lse;
  double scale = 1.0 / std::sqrt(static_cast<double>(facts.head_dim()));
  if (heads == AttentionProbe::Heads::kJoint) {
    query = query.reshape({crops * p1, 1, facts.hidden_size});
    key = key.reshape({crops * p1, 1, facts.hidden_size});
    scale = 1.0 / std::sqrt(static_cast<double>(facts.hidden_size));
    const at::Tensor begins = at::arange(crops, at::kLong) * p1;
    lse = std::get<1>(ops::attention({.query = query,
                                      .key = key,
                                      .value = key,
                                      .query_begin = at::arange(crops + 1, at::kLong) * p1,
                                      .key_begin = begins,
                                      .key_length = at::full({crops}, p1, at::kLong),
                                      .scale = scale,
                                      .is_causal = false}));
  }
  const auto longs = at::TensorOptions().dtype(at::kLong).device(query.device());
  const at::Tensor crop_begin = at::arange(crops, longs) * p1;
  const at::Tensor columns = (crop_begin.unsqueeze(1) + at::arange(1, p1, longs)).flatten();
  return ops::attention_probe({.layer = {query, key, lse},
                               .rows = crop_begin,
                               .row_begin = at::arange(crops + 1, at::kLong),
                               .columns = columns,
                               .column_begin = at::arange(crops + 1, at::kLong) * p,
                               .scale = scale,
                               .is_causal = false,
                               .heads = reduction(heads)});
}

}  // namespace

at::Tensor vision_keys(const VisionFacts& facts, const VisionLayerTrace& t) {
  if (!facts.has_class_token) return t.key.reshape({-1, facts.patches_per_token * facts.hidden_size});
  return t.key.reshape({t.output.size(0), t.output.size(1), -1}).slice(1, 1).flatten(0, 1);
}

at::Tensor offsets(std::initializer_list<int64_t> values) {
  return at::tensor(std::vector<int64_t>(values), at::kLong);
}

std::vector<int> layers_read(const Signal& signal) {
  if (const auto* probe = std::get_if<AttentionProbe>(&signal))
    return probe->rows == AttentionProbe::Rows::kClass ? std::vector<int>{} : std::vector<int>{probe->layer};
  if (const auto* growth = std::get_if<AttentionGrowth>(&signal)) return {growth->lower, growth->upper};
  const Tap& tap = std::get<Tap>(signal);
  return tap.what == Tap::What::kKey ? std::vector<int>{tap.layer} : std::vector<int>{};
}

std::vector<int> vision_layers_read(const Signal& signal) {
  if (const auto* probe = std::get_if<AttentionProbe>(&signal); probe && probe->rows == AttentionProbe::Rows::kClass)
    return {probe->layer};
  if (const auto* tap = std::get_if<Tap>(&signal); tap && tap->what == Tap::What::kVisionKey) return {tap->layer};
  return {};
}

bool is_vision_signal(const Signal& signal) {
  if (const auto* tap = std::get_if<Tap>(&signal))
    return tap->what == Tap::What::kVisionOutput || tap->what == Tap::What::kVisionClass ||
           tap->what == Tap::What::kVisionKey;
  return !vision_layers_read(signal).empty();
}

at::Tensor compute_signal(const Signal& signal, const SignalSource& source) {
  return std::visit(DecoderSignal(source), signal);
}

at::Tensor in_sequence_order(const at::Tensor& values, int64_t dimension, const at::Tensor& tower_row) {
  return tower_row.defined() ? values.index_select(dimension, tower_row) : values;
}

at::Tensor compute_signal(const Signal& signal, const VisionSignalSource& source) {
  if (const auto* probe = std::get_if<AttentionProbe>(&signal)) {
    std::vector<at::Tensor> images;
    for (const VisionLayerTrace& t : source.traces.at(probe->layer))
      images.push_back(class_attention(source.facts, t, probe->heads));
    return in_sequence_order(at::cat(images, -1), -1, source.tower_row);
  }
  const Tap& tap = std::get<Tap>(signal);
  if (tap.what == Tap::What::kVisionOutput) return source.features;
  if (tap.what == Tap::What::kVisionClass) return source.classes;
  std::vector<at::Tensor> keys;
  for (const VisionLayerTrace& t : source.traces.at(tap.layer)) keys.push_back(vision_keys(source.facts, t));
  return in_sequence_order(at::cat(keys), 0, source.tower_row);
}

double signal_flops(const Signal& signal, const DecoderConfig& config, const TokenLayout& layout) {
  const double width = 2.0 * config.num_heads * static_cast<double>(config.head_dim);
  const auto m = static_cast<double>(layout.num_image_tokens());
  if (const auto* probe = std::get_if<AttentionProbe>(&signal)) {
    if (reads_newest(*probe)) return width * (probe->with_others ? static_cast<double>(layout.num_tokens()) : m);
    double flops = 0;
    for (const auto& group : probe->groups)
      flops += width * static_cast<double>(group.rows.size(0)) *
               (group.columns.defined() ? static_cast<double>(group.columns.size(0)) : m);
    return flops;
  }
  if (const auto* growth = std::get_if<AttentionGrowth>(&signal))
    return 2 * width * m + (growth->pool.defined() ? 4.0 * static_cast<double>(config.hidden_size) * m : 0.0);
  return 0;
}

double look_ahead_flops(const Signal& signal, const DecoderConfig& config, const TokenLayout& layout) {
  const auto n = static_cast<double>(layout.num_tokens()), d_h = static_cast<double>(config.head_dim);
  const auto* probe = std::get_if<AttentionProbe>(&signal);
  const bool is_last_row = probe && reads_newest(*probe);
  const double projections = 2 * n * static_cast<double>(config.hidden_size) * d_h *
                             (static_cast<double>(config.num_heads) + 2.0 * config.num_kv_heads);
  const double pairs = is_last_row ? n : n * (n + 1) / 2;  // of the log-sum-exp, which takes values along
  return projections + 4 * config.num_heads * d_h * pairs;
}

double signal_flops(const Signal& signal, const VisionSignalSource& source) {
  const auto* probe = std::get_if<AttentionProbe>(&signal);
  if (!probe) return 0;
  const auto d = static_cast<double>(source.facts.hidden_size);
  double flops = 0;
  for (const VisionLayerTrace& t : source.traces.at(probe->layer)) {
    const auto crops = static_cast<double>(t.output.size(0)), rows = static_cast<double>(t.output.size(1));
    flops += 2 * d * crops * (rows - 1);
    if (probe->heads == AttentionProbe::Heads::kJoint) flops += 4 * d * crops * rows * rows;
  }
  return flops;
}

}  // namespace espalier
