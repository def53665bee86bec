// SPDX-License-Identifier: Apache-2.0
#include "training/masked_pass.h"

#include <torch/types.h>

#include <algorithm>
#include <string>

#include "espalier/error.h"
#include "espalier/ops.h"
#include "layout/check_signal.h"
#include "layout/cut.h"
#include "layout/plan.h"
#include "model/decoder_layers.h"

namespace espalier {

namespace {

// A row break and the patches of its row, as ordinals into image_tokens.
struct BrokenRow {
  int64_t token;
  at::Tensor patches;
};

// A row reaches back to the previous row break, the first to the end of the full view (crop 0).
std::vector<BrokenRow> broken_rows(const PromptLayout& prompt) {
  std::vector<BrokenRow> rows;
  std::vector<int64_t> patches;
  int64_t ordinal = 0;
  int image = -1;
  for (const Segment& s : prompt.segments) {
    if (s.image != image) patches.clear();
    image = s.image;
    for (int64_t t = s.begin; t < s.end; ++t) {
      if (s.kind == Segment::Kind::kPatches) {
        if (s.crop > 0) patches.push_back(ordinal);
        ++ordinal;
      } else if (s.kind == Segment::Kind::kRowBreak) {
        rows.push_back({t, torch::tensor(patches, torch::kLong).to(prompt.kind.device())});
        patches.clear();
      }
    }
  }
  return rows;
}

// One sequence with its policy on the way through the layers.
class Walker {
 public:
  Walker(const MaskedSequence& sequence, const PruningPolicy& policy, const ModelFacts& facts,
         const DecoderConfig& config)
      : policy_(policy),
        facts_(facts),
        config_(config),
        layout_(full_layout(sequence.prompt, policy.row_breaks_compete())),
        position_id_(sequence.position_id),
        length_(sequence.embedding.size(0)),
        rows_(broken_rows(*sequence.prompt)),
        steps_(plan_steps(policy, facts, *sequence.prompt)) {}

  int64_t length() const { return length_; }
  bool acts_before(int layer) const {
    return next_ < steps_.size() && steps_[next_].step.at == ActPoint{Site::kBeforeLayer, layer};
  }
  const at::Tensor& weight() const { return weight_; }  // of each key, [n]; undefined before the first mask

  // query, key and lse are of the layer before, which ran under weight(); undefined before the first layer.
  void act(const at::Tensor& query, const at::Tensor& key, const at::Tensor& lse) {
    const Step& step = steps_[next_].step;
    if (!step.soft_mask) throw Error(policy_.spec() + ": this policy cannot be trained");
    std::vector<at::Tensor> signals;
    if (step.needs)
      for (const Signal& signal : step.needs(layout_)) {
        check_signal(signal, step, facts_, 0);
        signals.push_back(received(probe_of(signal, step.at), query, key, lse));
      }
    const at::Tensor mask = step.soft_mask(layout_, signals);
    trace_.layers.push_back(step.at.layer);
    trace_.presence.push_back(trace_.presence.empty() ? mask : trace_.presence.back() * mask);
    weight_ = weights_of_keys(trace_.presence.back());
    ++next_;
  }

  MaskTrace take_trace() {
    if (next_ < steps_.size())
      throw Error(policy_.spec() + ": acts elsewhere than before a layer, and cannot be trained");
    return std::move(trace_);
  }

 private:
  const AttentionProbe& probe_of(const Signal& signal, const ActPoint& point) const {
    const auto* probe = std::get_if<AttentionProbe>(&signal);
    if (!probe || probe->rows != AttentionProbe::Rows::kGiven || probe->heads != AttentionProbe::Heads::kMean ||
        !probe->reduce_rows || probe->layer != point.layer - 1)
      throw Error(policy_.spec() +
                  ": reads other signals than mean attention of the layer before, and cannot be trained");
    return *probe;
  }

  at::Tensor received(const AttentionProbe& probe, const at::Tensor& query, const at::Tensor& key,
                      const at::Tensor& lse) const {
    std::vector<at::Tensor> groups;
    for (const AttentionProbe::Group& group : probe.groups)
      groups.push_back(attention_received(query, key, lse, group.rows,
                                          group.columns.defined() ? group.columns : layout_.image_tokens, weight_,
                                          attention_scale(config_), config_.sliding_window, position_id_));
    return torch::cat(groups);
  }

  at::Tensor weights_of_keys(const at::Tensor& presence) const {
    at::Tensor weight = torch::ones({length_}, presence.options().requires_grad(false));
    weight = weight.index_copy(0, layout_.image_tokens, presence);
    if (rows_.empty() || policy_.row_breaks_compete()) return weight;
    std::vector<at::Tensor> most;
    std::vector<int64_t> tokens;
    for (const BrokenRow& row : rows_) {
      tokens.push_back(row.token);
      most.push_back(row.patches.numel() > 0 ? presence.index_select(0, row.patches).amax()
                                             : torch::zeros({}, presence.options().requires_grad(false)));
    }
    return weight.index_copy(0, torch::tensor(tokens, torch::kLong).to(weight.device()), torch::stack(most));
  }

  const PruningPolicy& policy_;
  const ModelFacts& facts_;
  const DecoderConfig& config_;
  TokenLayout layout_;
  at::Tensor position_id_;
  int64_t length_;
  std::vector<BrokenRow> rows_;
  std::vector<PlannedStep> steps_;
  size_t next_ = 0;
  at::Tensor weight_;
  MaskTrace trace_;
};

// Weights of all keys of the packed row, or none while every sequence is whole.
ops::OptionalTensor joined_weights(const std::vector<Walker>& walkers, const at::Tensor& hidden) {
  if (std::ranges::none_of(walkers, [](const Walker& w) { return w.weight().defined(); })) return std::nullopt;
  const auto dtype = hidden.scalar_type() == torch::kDouble ? torch::kDouble : torch::kFloat;
  std::vector<at::Tensor> weights;
  for (const Walker& w : walkers)
    weights.push_back(w.weight().defined() ? w.weight().to(dtype)
                                           : torch::ones({w.length()}, hidden.options().dtype(dtype)));
  return torch::cat(weights);
}

}  // namespace

at::Tensor attention_received(const at::Tensor& query, const at::Tensor& key, const at::Tensor& lse,
                              const at::Tensor& rows, const at::Tensor& columns, const at::Tensor& weight, double scale,
                              int64_t window, const at::Tensor& position_id) {
  const at::ScalarType compute = query.scalar_type() == torch::kDouble ? torch::kDouble : torch::kFloat;
  const int64_t heads = query.size(1), sharing = heads / key.size(1);
  const at::Tensor q = query.index_select(0, rows).to(compute).permute({1, 0, 2});  // [h, r, d_h]
  const at::Tensor k = key.index_select(0, columns).to(compute).permute({1, 2, 0}).repeat_interleave(sharing, 0);
  const at::Tensor row = rows.unsqueeze(1), column = columns.unsqueeze(0);
  at::Tensor hidden = column > row;
  if (window > 0) {
    const at::Tensor position = position_id.dim() == 1 ? position_id : position_id.select(0, 0);
    hidden = hidden |
             (position.index_select(0, columns).unsqueeze(0) <= position.index_select(0, rows).unsqueeze(1) - window);
  }
  // A key of weight 0 may lie far above the row's sum: as in attention, the bound keeps 0 · exp(…) finite.
  const at::Tensor score = torch::matmul(q, k) * scale - lse.index_select(1, rows).to(compute).unsqueeze(2);
  at::Tensor map = torch::exp(score.clamp_max(60.0)).masked_fill(hidden, 0.0).mean(0);  // [r, c]
  if (!weight.defined()) return map.mean(0);
  const at::Tensor w = weight.to(compute);
  map = torch::where(row == column, map, map * w.index_select(0, columns));
  const at::Tensor of_rows = w.index_select(0, rows);
  return torch::matmul(of_rows, map) / of_rows.sum().clamp_min(1e-12);
}

namespace {

// Nothing leaves; masks weigh the keys of the layers from here on.
class MaskedSteps {
 public:
  MaskedSteps(const DecoderConfig& config, std::vector<Walker>& walkers, const at::Tensor& position_id)
      : config_(config), walkers_(walkers), position_id_(position_id) {
    begin_ = {0};
    for (const Walker& walker : walkers) begin_.push_back(begin_.back() + walker.length());
    query_begin_ = torch::tensor(begin_, torch::kLong);
    key_begin_ = query_begin_.narrow(0, 0, std::ssize(walkers)).contiguous();
  }

  void before_layer(int layer, LayerRows& rows) {
    if (layer == 0) rows.rotary = rotary(config_, position_id_, rows.hidden.scalar_type());
    for (size_t s = 0; s < walkers_.size(); ++s) {
      if (!walkers_[s].acts_before(layer)) continue;
      const auto own = [&](const at::Tensor& of_all, int64_t dimension) {
        return of_all.defined() ? of_all.slice(dimension, begin_[s], begin_[s + 1]) : of_all;
      };
      walkers_[s].act(own(query_, 0), own(key_, 0), own(lse_, 1));
    }
  }

  at::Tensor attend(int, const QueryKeyValue& qkv, const LayerRows& rows) {
    const ops::OptionalTensor position = config_.sliding_window > 0 ? ops::OptionalTensor(position_id_) : std::nullopt;
    query_ = qkv.query;
    key_ = qkv.key;
    at::Tensor attended;
    std::tie(attended, lse_) = ops::attention({.query = qkv.query,
                                               .key = qkv.key,
                                               .value = qkv.value,
                                               .query_begin = query_begin_,
                                               .key_begin = key_begin_,
                                               .key_length = query_begin_.diff(),
                                               .scale = attention_scale(config_),
                                               .window = config_.sliding_window,
                                               .query_position = position,
                                               .key_position = position,
                                               .key_weight = joined_weights(walkers_, rows.hidden)});
    return attended;
  }

  void after_attention(int, const LayerRows&) {}

 private:
  const DecoderConfig& config_;
  std::vector<Walker>& walkers_;
  at::Tensor position_id_;
  std::vector<int64_t> begin_;
  at::Tensor query_begin_, key_begin_;
  at::Tensor query_, key_, lse_;  // of the layer before
};

}  // namespace

MaskedPass run_masked(const DecoderConfig& config, const DecoderWeights& weights, const ModelFacts& facts,
                      const PruningPolicy& policy, std::span<const MaskedSequence> sequences) {
  std::vector<Walker> walkers;
  std::vector<at::Tensor> embeddings, positions;
  for (const MaskedSequence& s : sequences) {
    walkers.emplace_back(s, policy, facts, config);
    embeddings.push_back(s.embedding);
    positions.push_back(s.position_id);
  }
  MaskedSteps steps(config, walkers, torch::cat(positions, -1));
  LayerRows rows{torch::cat(embeddings), {}};
  run_layers(config, weights, 0, config.num_layers, rows, steps);
  MaskedPass pass{.hidden = rows.hidden, .traces = {}};
  for (Walker& walker : walkers) pass.traces.push_back(walker.take_trace());
  return pass;
}

}  // namespace espalier
