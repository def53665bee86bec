// SPDX-License-Identifier: Apache-2.0
#include "runtime/decoder_pass.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "espalier/ops.h"
#include "runtime/generated_attention.h"
#include "runtime/signals.h"

namespace espalier {

namespace {

at::Tensor longs(const std::vector<int64_t>& values) {
  return at::tensor(values, at::kLong);
}

// [g, k'] rows that stay in each KV head: everything but image tokens, and the kept ones, in order.
at::Tensor cached_rows(const TokenLayout& layout, const at::Tensor& kept) {
  const int64_t n = layout.num_tokens(), num_left = n - layout.num_image_tokens() + kept.size(1);
  at::Tensor leaves = at::zeros({kept.size(0), n}, layout.image_tokens.options());
  leaves.index_fill_(1, layout.image_tokens, n);
  leaves.scatter_(1, layout.image_tokens.index_select(0, kept.flatten()).view(kept.sizes()), 0);
  const at::Tensor rank = at::arange(n, layout.image_tokens.options()) + leaves;  // dropped rows sort to the end
  return std::get<0>(rank.sort(1)).slice(1, 0, num_left);
}

// Rows of the blocks that a prefix keeps alive, what stands behind its rows among them, beyond those of the one that it
// goes on from.
int64_t rows_kept_alive(const SequenceKv& kv, const CachedPrefix* before) {
  int64_t rows = 0;
  for (int layer = 0; layer < kv.num_layers(); ++layer)
    for (const KvRun& run : kv.runs(layer)) {
      const auto has_it = [&](const KvRun& other) { return other.block == run.block; };
      if (!before || std::ranges::none_of(before->kv.runs(layer), has_it))
        rows += run.block->end() - run.block->begin();
    }
  return rows;
}

bool makes_prefix(const PrefixUse& use, int layer) {
  return !use.ends.empty() && use.made.empty() && use.depth == layer;
}

bool reads_layer(const PolicyWalk& walk, int layer) {
  return std::ranges::any_of(walk.needs(),
                             [&](const Signal& signal) { return std::ranges::count(layers_read(signal), layer) > 0; });
}

}  // namespace

struct DecoderPass::Steps {
  DecoderPass& pass;

  void before_layer(int layer, LayerRows&) {
    if (pass.is_prefill_)
      pass.enter_layer(layer);
    else
      pass.turn_tokens(layer);
  }

  at::Tensor attend(int layer, const QueryKeyValue& qkv, LayerRows& rows) {
    pass.write_rows(layer, qkv);
    if (!pass.is_prefill_) pass.act_again(layer, qkv.query);
    at::Tensor query = qkv.query;
    if (pass.only_last_rows_matter(layer)) {
      const at::Tensor last = pass.last_rows();
      query = query.index_select(0, last);
      rows.hidden = rows.hidden.index_select(0, last);
      if (pass.config_.sliding_window > 0) pass.position_id_ = pass.position_id_.index_select(0, last);
      pass.set_counts(std::vector<int64_t>(pass.sequences_.size(), 1));
    }
    const auto [attended, lse] = pass.attend_runs(layer, query);
    if (pass.is_prefill_) {
      pass.keep_traces(layer, qkv, lse);
      pass.act_on_cache(layer);
    }
    return attended;
  }

  void after_attention(int layer, LayerRows&) {
    if (pass.is_prefill_) pass.act(Site::kAfterAttention, layer);
  }
};

DecoderPass::DecoderPass(const LoadedModel& model, KvArena& arena, std::vector<Sequence*> sequences)
    : model_(model),
      config_(model.config.decoder),
      arena_(arena),
      sequences_(std::move(sequences)),
      is_prefill_(true),
      total_(model.device, Stopwatch::kStopped),
      selecting_(model.device, Stopwatch::kStopped) {
  pack();
}

DecoderPass::DecoderPass(const LoadedModel& model, KvArena& arena, std::vector<Sequence*> sequences,
                         std::span<const int32_t> ids)
    : model_(model),
      config_(model.config.decoder),
      arena_(arena),
      sequences_(std::move(sequences)),
      is_prefill_(false),
      total_(model.device, Stopwatch::kStopped),
      selecting_(model.device, Stopwatch::kStopped) {
  rows_.hidden = embed_tokens(model.weights.decoder, longs({ids.begin(), ids.end()}).to(model.device));
  set_counts(std::vector<int64_t>(sequences_.size(), 1));
}

void DecoderPass::run_to(int layer) {
  total_.start();
  Steps steps{*this};
  for (; depth_ < layer && !sequences_.empty(); ++depth_) {
    run_layers(config_, model_.weights.decoder, depth_, depth_ + 1, rows_, steps);
    if (is_prefill_ && !failed_.empty()) remove(std::exchange(failed_, {}));
  }
  total_.stop();
}

void DecoderPass::leave(const Sequence* sequence) {
  const auto found = std::ranges::find(sequences_, sequence);
  if (found != sequences_.end()) remove({static_cast<size_t>(found - sequences_.begin())});
}

at::Tensor DecoderPass::finish() {
  for (size_t s = 0; s < sequences_.size(); ++s) {
    Sequence& sequence = *sequences_[s];
    if (!is_prefill_) {
      ++sequence.num_decoded;
      sequence.stats.grown(sequence.kv);
      continue;
    }
    if (stands_at_boundary(sequence, depth_)) pass_boundary(sequence, depth_);
    if (sequence.watcher && sequence.watcher->watches_layers())
      sequence.watcher->on_output(sequence.walk.layout(), rows_of(rows_.hidden, s));
    sequence.stats.cached(sequence.kv);
  }
  const at::Tensor last = is_prefill_ ? rows_.hidden.index_select(0, last_rows()) : rows_.hidden;
  const at::Tensor result = logits(model_.weights.decoder, final_norm(config_, model_.weights.decoder, last));
  if (!is_prefill_) return result;
  for (size_t s = 0; s < sequences_.size(); ++s)
    if (RunWatcher* watcher = sequences_[s]->watcher) watcher->on_logits(result[static_cast<int64_t>(s)]);
  const double select_ms = selecting_.milliseconds(), prefill_ms = total_.milliseconds() - select_ms;
  for (Sequence* sequence : sequences_) {
    sequence->stats.selected(select_ms);
    sequence->stats.prefilled(prefill_ms);
  }
  return result;
}

// ---- packing ----

void DecoderPass::set_counts(const std::vector<int64_t>& counts) {
  begin_ = {0};
  for (const int64_t count : counts) begin_.push_back(begin_.back() + count);
  query_begin_ = longs(begin_);
}

void DecoderPass::unpack() {
  for (size_t s = 0; s < sequences_.size(); ++s) sequences_[s]->stream.hidden = rows_of(rows_.hidden, s);
  rows_.hidden = at::Tensor();
}

void DecoderPass::pack() {
  std::vector<at::Tensor> hidden, positions;
  std::vector<int64_t> counts;
  for (Sequence* sequence : sequences_) {
    counts.push_back(sequence->stream.size());
    hidden.push_back(std::exchange(sequence->stream.hidden, at::Tensor()));
    positions.push_back(sequence->walk.layout().position_id);
  }
  set_counts(counts);
  if (sequences_.empty()) return;
  rows_.hidden = hidden.size() == 1 ? hidden[0] : at::cat(hidden);
  position_id_ = positions.size() == 1 ? positions[0] : at::cat(positions, -1);
  rows_.rotary = rotary(config_, position_id_, model_.dtype);
}

void DecoderPass::remove(const std::vector<size_t>& sequences) {
  unpack();
  std::vector<Sequence*> left;
  for (size_t s = 0; s < sequences_.size(); ++s)
    if (std::ranges::find(sequences, s) == sequences.end()) left.push_back(sequences_[s]);
  sequences_ = std::move(left);
  pack();
}

// ---- policies ----

bool DecoderPass::any_acts(Site site, int layer) const {
  return std::ranges::any_of(sequences_, [&](const Sequence* s) { return s->walk.is_next(site, layer); });
}

// What a policy throws is its own sequence's affair.
template <typename Act>
void DecoderPass::attempt(size_t s, const Act& act) {
  try {
    act();
  } catch (...) {
    failures_.push_back({sequences_[s], std::current_exception()});
    failed_.push_back(s);
  }
}

std::vector<at::Tensor> DecoderPass::signals_for(Sequence& sequence, const at::Tensor& hidden, const Rotary& own) {
  const TokenLayout& layout = sequence.walk.layout();
  bool looked_ahead = false;
  const auto look_ahead = [&](int layer) {
    looked_ahead = true;
    const QueryKeyValue qkv =
        project_qkv(config_, model_.weights.decoder.layers[static_cast<size_t>(layer)], hidden, own);
    if (sequence.watcher) sequence.watcher->on_look_ahead({layer, layout, hidden, qkv.query, qkv.key, {}});
    return ops::AttendedLayer{qkv.query, qkv.key, {}};
  };
  const auto norm = [this](const at::Tensor& x) { return final_norm(config_, model_.weights.decoder, x); };
  const SignalSource source{config_, layout, hidden, sequence.traces, look_ahead, norm};
  std::vector<at::Tensor> signals;
  for (const Signal& signal : sequence.walk.needs()) {
    looked_ahead = false;
    signals.push_back(compute_signal(signal, source));
    sequence.stats.probed(signal_flops(signal, config_, layout) +
                          (looked_ahead ? look_ahead_flops(signal, config_, layout) : 0.0));
  }
  return signals;
}

void DecoderPass::acted(const Sequence& sequence) {
  if (!sequence.on_acted) return;
  if (!is_prefill_) return sequence.on_acted();
  selecting_.stop();
  total_.stop();
  sequence.on_acted();
  total_.start();
  selecting_.start();
}

bool DecoderPass::stands_at_boundary(const Sequence& sequence, int layer) const {
  const PrefixUse& use = sequence.prefix;
  const bool joins = use.found && !sequence.walk.has_joined() && use.found->depth == layer;
  const bool makes = makes_prefix(use, layer);
  return (joins || makes) && sequence.walk.is_at_boundary();
}

// True when rows came.
bool DecoderPass::pass_boundary(Sequence& sequence, int layer) {
  PrefixUse& use = sequence.prefix;
  const bool joins = use.found && !sequence.walk.has_joined();
  if (joins) {
    sequence.walk.join();
    if (layer < config_.num_layers) {
      Stream whole = use.found->stream;
      whole.append(sequence.stream);
      sequence.stream = std::move(whole);
    }
    for (const auto& [traced, front] : use.found->traces) {
      ops::AttendedLayer& trace = sequence.traces.at(traced);
      trace = {at::cat({front.query, trace.query}), at::cat({front.key, trace.key}),
               at::cat({front.lse, trace.lse}, 1)};
    }
    use.rows.clear();
  }
  if (makes_prefix(use, layer)) make_prefixes(sequence);
  return joins;
}

// The last end is made of the sequence's own rows, which are shared from now on; the others are parts of it.
void DecoderPass::make_prefixes(Sequence& sequence) {
  PrefixUse& use = sequence.prefix;
  const bool has_stream = use.depth < config_.num_layers;
  std::vector<std::shared_ptr<CachedPrefix>> made;
  for (const PrefixEnd& end : use.ends) {
    auto prefix = std::make_shared<CachedPrefix>();
    prefix->key = key_of_prefix(sequence, end.token);
    prefix->custom = sequence.custom;
    prefix->end = end.token;
    prefix->depth = use.depth;
    prefix->walk = std::make_shared<const PrefixWalk>(sequence.walk.snapshot(end.token));
    made.push_back(std::move(prefix));
  }
  CachedPrefix& whole = *made.back();
  whole.kv = sequence.kv.share(use.lengths.back());
  whole.image_of_tokens = use.images;
  whole.bytes = rows_kept_alive(whole.kv, use.found.get()) * bytes_per_kv_row(config_, model_.dtype);
  const auto keep = [&](const at::Tensor& rows) {
    whole.bytes += static_cast<int64_t>(rows.nbytes());
    return rows.clone();
  };
  if (const int64_t rows = whole.walk->layout.num_tokens(); has_stream) {
    whole.stream.hidden = keep(sequence.stream.hidden.slice(0, 0, rows));
    for (const at::Tensor& rider : sequence.stream.riders) whole.stream.riders.push_back(keep(rider.slice(0, 0, rows)));
    for (const auto& [layer, trace] : sequence.traces)
      whole.traces[layer] = {keep(trace.query.slice(0, 0, rows)), keep(trace.key.slice(0, 0, rows)),
                             keep(trace.lse.slice(1, 0, rows))};
  }
  for (size_t i = 0; i + 1 < made.size(); ++i) {
    CachedPrefix& part = *made[i];
    part.kv = whole.kv.front(use.lengths[i]);
    for (size_t layer = 0; layer < use.images.size(); ++layer)
      part.image_of_tokens.push_back(use.images[layer].slice(0, 0, use.lengths[i][layer]));
    if (!has_stream) continue;
    const int64_t rows = part.walk->layout.num_tokens();
    part.stream.hidden = whole.stream.hidden.slice(0, 0, rows);
    for (const at::Tensor& rider : whole.stream.riders) part.stream.riders.push_back(rider.slice(0, 0, rows));
    for (const auto& [layer, trace] : whole.traces)
      part.traces[layer] = {trace.query.slice(0, 0, rows), trace.key.slice(0, 0, rows), trace.lse.slice(1, 0, rows)};
  }
  use.made.assign(made.begin(), made.end());
}

// Rows of a layer that are before each end.
void DecoderPass::note_prefix(Sequence& sequence, int layer) const {
  PrefixUse& use = sequence.prefix;
  if (use.ends.empty() || layer >= use.depth) return;
  const TokenLayout& layout = sequence.walk.layout();
  if (use.rows.empty()) {
    std::vector<int64_t> examples;
    for (const PrefixEnd& end : use.ends) examples.push_back(end.example);
    const at::Tensor first = longs(examples).to(layout.example.device()).unsqueeze(1);
    const at::Tensor counts = (layout.example.unsqueeze(0) < first).sum(1).cpu();
    use.rows.assign(counts.const_data_ptr<int64_t>(), counts.const_data_ptr<int64_t>() + counts.numel());
  }
  const CachedPrefix* found = use.found.get();
  const int64_t before = found ? found->kv.length(layer) : 0;
  use.lengths.resize(use.ends.size());
  for (size_t i = 0; i < use.ends.size(); ++i) use.lengths[i].push_back(use.rows[i] + before);
  const at::Tensor own = layout.image.slice(0, 0, use.rows.back());
  use.images.push_back(found ? at::cat({found->image_of_tokens[static_cast<size_t>(layer)], own}) : own);
}

void DecoderPass::act(Site site, int layer) {
  const bool is_entry = site == Site::kBeforeLayer;
  if (!any_acts(site, layer) &&
      !(is_entry && std::ranges::any_of(sequences_, [&](const Sequence* s) { return stands_at_boundary(*s, layer); })))
    return;
  selecting_.start();
  std::vector<Rotary> own;
  for (size_t s = 0; s < sequences_.size(); ++s)
    own.push_back({rows_of(rows_.rotary.cos, s), rows_of(rows_.rotary.sin, s)});
  const at::Tensor packed = rows_.hidden;
  bool is_changed = false;
  unpack();
  for (size_t s = 0; s < sequences_.size(); ++s) {
    Sequence& sequence = *sequences_[s];
    attempt(s, [&] {
      for (;;) {  // several steps at one point, in a pipeline
        if (is_entry && stands_at_boundary(sequence, layer) && pass_boundary(sequence, layer)) {
          is_changed = true;
          own[s] = rotary(config_, sequence.walk.layout().position_id, model_.dtype);
        }
        if (!sequence.walk.is_next(site, layer)) return;
        const std::vector<at::Tensor> signals = signals_for(sequence, sequence.stream.hidden, own[s]);
        const Applied cut = sequence.walk.act(signals).applied;
        sequence.traces.clear();
        if (!cut.unchanged) {
          is_changed = true;
          sequence.stream.take(cut);
          sequence.prefix.rows.clear();
        }
        acted(sequence);  // last: one that throws leaves rows and layout of one length, until its sequence is removed
        if (!cut.unchanged && sequence.walk.is_next(site, layer))
          own[s] = rotary(config_, sequence.walk.layout().position_id, model_.dtype);
      }
    });
  }
  if (is_changed) {
    pack();
  } else {
    rows_.hidden = packed;
    for (Sequence* sequence : sequences_) sequence->stream.hidden = at::Tensor();
  }
  selecting_.stop();
}

// Rows of image tokens leave this layer's cache, each KV head its own; they stay in the stream.
void DecoderPass::act_on_cache(int layer) {
  if (!any_acts(Site::kCache, layer)) return;
  selecting_.start();
  for (size_t s = 0; s < sequences_.size(); ++s) {
    Sequence& sequence = *sequences_[s];
    if (!sequence.walk.is_next(Site::kCache, layer)) continue;
    attempt(s, [&] {
      const TokenLayout layout = sequence.walk.layout();
      const std::vector<at::Tensor> signals = signals_for(sequence, {}, {});
      const PolicyWalk::Outcome outcome = sequence.walk.act(signals);
      sequence.traces.clear();
      cut_cache(sequence, layer, layout, outcome);
      acted(sequence);
    });
  }
  selecting_.stop();
}

void DecoderPass::cut_cache(Sequence& sequence, int layer, const TokenLayout& layout,
                            const PolicyWalk::Outcome& outcome) const {
  const at::Tensor rows = cached_rows(layout, outcome.kept_per_head);
  if (outcome.step->every > 0)
    sequence.kv.select(arena_, layer, rows, layout.num_tokens(), outcome.step->revives);
  else
    sequence.kv.keep(arena_, layer, rows, sequence.room);
}

// The newest token's row is in the cache and has not been attended with: steps that are asked with it decide what it
// sees.
void DecoderPass::act_again(int layer, const at::Tensor& query) {
  for (size_t s = 0; s < sequences_.size(); ++s) {
    Sequence& sequence = *sequences_[s];
    const bool is_watched = sequence.watcher && sequence.watcher->watches_generated();
    if ((is_watched || !sequence.walk.again().empty()) && std::ranges::count(failed_, s) == 0)
      attempt(s, [&] { act_again(sequence, layer, rows_of(query, s)); });
  }
}

void DecoderPass::act_again(Sequence& sequence, int layer, const at::Tensor& query) {
  const int64_t generated = sequence.num_decoded + 1;
  at::Tensor seen;  // by all that want it
  const auto attention = [&] {
    if (!seen.defined()) {
      seen = generated_attention(config_, arena_, sequence.kv, layer, generated, query);
      sequence.stats.probed(2.0 * static_cast<double>(seen.numel() * config_.head_dim));
    }
    return seen;
  };
  if (sequence.watcher && sequence.watcher->watches_generated())
    sequence.watcher->on_generated(layer, generated, attention());
  const std::span<const StepAgain> steps = sequence.walk.again();
  for (size_t i = 0; i < steps.size(); ++i)
    for (size_t j = 0; j < steps[i].needs.size(); ++j)
      if (layers_read(steps[i].needs[j])[0] == layer && GeneratedRows::is_wanted(steps[i], j, generated))
        sequence.generated.add(i, j, attention());
  for (size_t i = 0; i < steps.size(); ++i) {
    if (steps[i].step().at.layer != layer || !steps[i].is_due(generated)) continue;
    const PolicyWalk::Outcome outcome = sequence.walk.act_again(i, generated, sequence.generated.take(i, steps[i]));
    cut_cache(sequence, layer, steps[i].layout, outcome);
    acted(sequence);
  }
}

// ---- the parts of a layer ----

void DecoderPass::enter_layer(int layer) {
  for (size_t s = 0; s < sequences_.size(); ++s)
    if (RunWatcher* watcher = sequences_[s]->watcher)
      watcher->on_state(layer, sequences_[s]->walk.layout(), rows_of(rows_.hidden, s));
  act(Site::kBeforeLayer, layer);
  for (Sequence* sequence : sequences_) {
    const TokenLayout& layout = sequence->walk.layout();
    const CachedPrefix* front = sequence->walk.has_joined() ? nullptr : sequence->prefix.found.get();
    sequence->stats.entered_layer(
        front ? at::cat({front->image_of_tokens[static_cast<size_t>(layer)], layout.image}) : layout.image,
        layout.num_tokens());
    note_prefix(*sequence, layer);
    sequence->first_position[static_cast<size_t>(layer)] =
        sequence->walk.positions() == Positions::kCompact ? layout.num_tokens() + (front ? front->kv.length(layer) : 0)
                                                          : sequence->prompt.next_position;
  }
}

// Layers of one span share their positions; the rotation is made anew only where they change (positions=compact).
void DecoderPass::turn_tokens(int layer) {
  std::vector<int64_t> positions;
  for (const Sequence* sequence : sequences_) positions.push_back(sequence->position_at(layer));
  if (positions == token_position_) return;
  token_position_ = std::move(positions);
  position_id_ = longs(token_position_).to(model_.device);
  rows_.rotary = rotary(config_, position_id_, model_.dtype);
}

void DecoderPass::write_rows(int layer, const QueryKeyValue& qkv) {
  constexpr int64_t kRoomOfAnswers = 64;
  std::vector<int64_t> first;
  for (size_t s = 0; s < sequences_.size(); ++s)
    first.push_back(sequences_[s]->kv.extend(arena_, layer, begin_[s + 1] - begin_[s],
                                             is_prefill_ ? sequences_[s]->room : kRoomOfAnswers,
                                             is_prefill_ ? sequences_[s]->room : sequences_[s]->rows_to_come(layer)));
  const auto write = [&](const at::Tensor& buffer, const at::Tensor& rows) {
    if (!buffer.defined()) return;
    if (!is_prefill_ && first.size() > 1) {
      buffer.index_copy_(0, longs(first).to(buffer.device()), rows);
      return;
    }
    for (size_t s = 0; s < first.size(); ++s)
      buffer.narrow(0, first[s], begin_[s + 1] - begin_[s]).copy_(rows_of(rows, s));
  };
  write(arena_.key(layer), qkv.key);
  write(arena_.value(layer), qkv.value);
  write(arena_.position_id(layer), position_id_);
}

// Each sequence's own run, whose last rows are the queries' own; then the runs that are shared, each read once for all
// sequences that have it; the parts are merged by their log-sum-exp.
std::pair<at::Tensor, at::Tensor> DecoderPass::attend_runs(int layer, const at::Tensor& query) const {
  const ops::OptionalTensor key_position =
      config_.sliding_window > 0 ? ops::OptionalTensor(arena_.position_id(layer)) : std::nullopt;
  const auto attend = [&](const at::Tensor& rows, const at::Tensor& rows_begin, const std::vector<KvRun>& runs,
                          bool is_causal, const at::Tensor& rows_position) {
    std::vector<int64_t> begin, length;
    for (const KvRun& run : runs) {
      begin.push_back(run.begin);
      length.push_back(run.length);
    }
    return ops::attention({.query = rows,
                           .key = arena_.key(layer),
                           .value = arena_.value(layer),
                           .query_begin = rows_begin,
                           .key_begin = longs(begin),
                           .key_length = longs(length),
                           .scale = attention_scale(config_),
                           .is_causal = is_causal,
                           .window = config_.sliding_window,
                           .query_position = key_position ? ops::OptionalTensor(rows_position) : std::nullopt,
                           .key_position = key_position});
  };
  std::vector<KvRun> own;
  size_t most = 0;
  for (const Sequence* sequence : sequences_) {
    own.push_back(sequence->kv.runs(layer).back());
    most = std::max(most, sequence->kv.runs(layer).size());
  }
  auto [output, lse] = attend(query, query_begin_, own, /*is_causal=*/true, position_id_);
  for (size_t level = 0; level + 1 < most; ++level) {
    // Sequences by the run that they have here, and their rows behind each other in that order.
    std::vector<KvRun> shared;
    std::vector<std::vector<size_t>> readers;
    for (size_t s = 0; s < sequences_.size(); ++s) {
      const std::span<const KvRun> runs = sequences_[s]->kv.runs(layer);
      if (level + 1 >= runs.size()) continue;
      const auto known = std::ranges::find_if(
          shared, [&](const KvRun& run) { return run.begin == runs[level].begin && run.length == runs[level].length; });
      if (known == shared.end()) {
        shared.push_back(runs[level]);
        readers.push_back({s});
      } else {
        readers[static_cast<size_t>(known - shared.begin())].push_back(s);
      }
    }
    std::vector<int64_t> rows, rows_begin = {0};
    for (const std::vector<size_t>& of_run : readers) {
      for (const size_t s : of_run)
        for (int64_t row = begin_[s]; row < begin_[s + 1]; ++row) rows.push_back(row);
      rows_begin.push_back(std::ssize(rows));
    }
    const bool is_everyone = std::ssize(rows) == query.size(0) && std::ranges::is_sorted(rows);
    const at::Tensor index = longs(rows).to(query.device());
    const auto of_readers = [&](const at::Tensor& x, int64_t dimension) {
      return is_everyone ? x : x.index_select(dimension, index);
    };
    const auto [seen, seen_lse] = attend(of_readers(query, 0), longs(rows_begin), shared, /*is_causal=*/false,
                                         config_.sliding_window > 0 ? of_readers(position_id_, 0) : at::Tensor());
    auto [merged, merged_lse] = ops::merge_states(of_readers(output, 0), of_readers(lse, 1), seen, seen_lse);
    output = is_everyone ? merged : output.index_copy(0, index, merged);
    lse = is_everyone ? merged_lse : lse.index_copy(1, index, merged_lse);
  }
  return {output, lse};
}

void DecoderPass::keep_traces(int layer, const QueryKeyValue& qkv, const at::Tensor& lse) {
  for (size_t s = 0; s < sequences_.size(); ++s) {
    Sequence& sequence = *sequences_[s];
    const bool is_watched = sequence.watcher && sequence.watcher->watches_layers();
    // Behind a prefix, what the step at the boundary reads is known from it.
    const CachedPrefix* front = sequence.walk.has_joined() ? nullptr : sequence.prefix.found.get();
    const bool is_read = reads_layer(sequence.walk, layer) || (front && front->traces.contains(layer));
    if (!is_watched && !is_read) continue;
    const ops::AttendedLayer trace{rows_of(qkv.query, s), rows_of(qkv.key, s), lse.slice(1, begin_[s], begin_[s + 1])};
    if (is_watched)
      sequence.watcher->on_layer(
          {layer, sequence.walk.layout(), rows_of(rows_.hidden, s), trace.query, trace.key, trace.lse});
    if (is_read) sequence.traces[layer] = trace;
  }
}

// Behind the last layer nobody reads any row but the last token's: there the others need keys and values, but neither
// attention nor MLP.
bool DecoderPass::only_last_rows_matter(int layer) const {
  return is_prefill_ && layer + 1 == config_.num_layers && std::ranges::none_of(sequences_, [](const Sequence* s) {
           return s->walk.next() != nullptr || (s->watcher && s->watcher->watches_layers());
         });
}

at::Tensor DecoderPass::last_rows() const {
  std::vector<int64_t> last;
  for (size_t s = 0; s < sequences_.size(); ++s) last.push_back(begin_[s + 1] - 1);
  return longs(last).to(model_.device);
}

}  // namespace espalier
