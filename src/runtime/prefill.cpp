// SPDX-License-Identifier: Apache-2.0
#include "runtime/prefill.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "espalier/ops.h"
#include "model/decoder.h"
#include "runtime/device_stopwatch.h"
#include "runtime/flops.h"
#include "runtime/signals.h"

namespace espalier {

namespace {

class Prefill {
 public:
  Prefill(const LoadedModel& model, std::span<Sequence> sequences, KvCache& cache, const PrefillHooks& hooks)
      : model_(model),
        config_(model.config.decoder),
        sequences_(sequences),
        cache_(cache),
        hooks_(hooks),
        total_(model.device, Stopwatch::kStopped),
        selecting_(model.device, Stopwatch::kStopped) {}

  at::Tensor run() {
    total_.start();
    start();
    for (int layer = 0; layer < config_.num_layers; ++layer) {
      if (hooks_.should_cancel && hooks_.should_cancel()) throw Cancelled();
      if (hooks_.on_state)
        for (size_t s = 0; s < sequences_.size(); ++s)
          hooks_.on_state(layer, sequences_[s].walk.layout(), rows_of(hidden_, s));
      act(Site::kBeforeLayer, layer);
      run_layer(layer);
      if (hooks_.on_progress) hooks_.on_progress("prefill", layer + 1, config_.num_layers);
    }
    const at::Tensor logits_of_last = output();
    if (hooks_.on_logits) hooks_.on_logits(logits_of_last);
    total_.stop();
    const double select_ms = selecting_.milliseconds(), prefill_ms = total_.milliseconds() - select_ms;
    for (Sequence& s : sequences_) {
      s.stats.select_ms += select_ms;
      s.stats.prefill_ms += prefill_ms;
    }
    return logits_of_last;
  }

 private:
  void start() {
    std::vector<at::Tensor> hidden;
    for (Sequence& s : sequences_) {
      hidden.push_back(s.hidden);
      s.hidden = at::Tensor();
      s.stats.prefill_flops_unpruned =
          prefill_flops(config_, std::vector<int64_t>(config_.num_layers, s.prompt.layout->num_tokens));
      s.stats.kv_bytes_unpruned = config_.num_layers * s.prompt.layout->num_tokens * 2 * config_.num_kv_heads *
                                  config_.head_dim * static_cast<int64_t>(at::elementSize(model_.dtype));
      s.next_position.resize(config_.num_layers);
    }
    hidden_ = hidden.size() == 1 ? hidden[0] : at::cat(hidden);
    cache_.resize(config_.num_layers);
    layout_changed();
  }

  // Row offsets, positions and rotation of the packed row follow the layouts.
  void layout_changed() {
    lengths_.clear();
    begin_ = {0};
    std::vector<at::Tensor> positions;
    for (const Sequence& s : sequences_) {
      lengths_.push_back(s.walk.layout().num_tokens());
      begin_.push_back(begin_.back() + lengths_.back());
      positions.push_back(s.walk.layout().position_id);
    }
    position_id_ = at::cat(positions, -1);
    rotary_ = rotary(config_, position_id_, model_.dtype);
    query_begin_ = at::tensor(begin_, at::kLong);
    key_begin_ = at::tensor(std::vector<int64_t>(begin_.begin(), begin_.end() - 1), at::kLong);
    key_length_ = at::tensor(lengths_, at::kLong);
  }

  at::Tensor rows_of(const at::Tensor& packed, size_t s) const { return packed.slice(0, begin_[s], begin_[s + 1]); }

  DecoderState state_of(size_t s) const {
    const auto look_ahead = [this, s](int layer) {
      const Rotary own{rows_of(rotary_.cos, s), rows_of(rotary_.sin, s)};
      const at::Tensor hidden = rows_of(hidden_, s);
      const QueryKeyValue qkv = project_qkv(config_, model_.weights.decoder.layers[layer], hidden, own);
      if (hooks_.on_look_ahead)
        hooks_.on_look_ahead({layer, s, sequences_[s].walk.layout(), hidden, qkv.query, qkv.key, {}});
      return LayerTrace{qkv.query, qkv.key, {}};
    };
    const auto norm = [this](const at::Tensor& x) { return final_norm(config_, model_.weights.decoder, x); };
    return {config_, sequences_[s].walk.layout(), rows_of(hidden_, s), sequences_[s].traces, look_ahead, norm};
  }

  std::vector<at::Tensor> signals_for(size_t s) {
    std::vector<at::Tensor> signals;
    const DecoderState state = state_of(s);
    for (const Signal& signal : sequences_[s].walk.needs()) {
      signals.push_back(compute_signal(signal, state));
      sequences_[s].stats.probe_flops += signal_flops(signal, config_, state.layout);
    }
    return signals;
  }

  void acted(size_t s) {
    if (!hooks_.on_acted) return;
    selecting_.stop();
    total_.stop();
    hooks_.on_acted(s);
    total_.start();
    selecting_.start();
  }

  bool any_acts(Site site, int layer) const {
    return std::ranges::any_of(sequences_, [&](const Sequence& s) { return s.walk.is_next(site, layer); });
  }

  // Policies that act here decide; survivors of all sequences move together in one gather.
  void act(Site site, int layer) {
    selecting_.start();
    while (any_acts(site, layer)) act_once(site, layer);  // several at one point, in a pipeline
    selecting_.stop();
  }

  void act_once(Site site, int layer) {
    std::vector<at::Tensor> index;  // into the packed rows, then the new vectors
    std::vector<at::Tensor> new_vectors;
    int64_t num_new = 0;
    bool changed = false;
    for (size_t s = 0; s < sequences_.size(); ++s) {
      Sequence& sequence = sequences_[s];
      const int64_t n = lengths_[s];
      at::Tensor own;
      if (sequence.walk.is_next(site, layer)) {
        const std::vector<at::Tensor> signals = signals_for(s);
        const Applied applied = sequence.walk.act(signals).applied;
        sequence.traces.clear();
        acted(s);
        if (!applied.unchanged) {
          changed = true;
          own = applied.index;
          if (applied.has_new_tokens) {
            // Within the sequence new vectors count from n; in the packed row they follow all rows.
            const int64_t shift = begin_.back() - n + num_new;
            own = at::where(own >= n, own + shift, own + begin_[s]);
            new_vectors.push_back(applied.new_vectors.to(hidden_.scalar_type()));
            num_new += applied.new_vectors.size(0);
          } else {
            own = own + begin_[s];
          }
        }
      }
      index.push_back(own.defined() ? own : at::arange(begin_[s], begin_[s + 1], position_id_.options()));
    }
    if (changed) {
      if (num_new > 0) {
        new_vectors.insert(new_vectors.begin(), hidden_);
        hidden_ = at::cat(new_vectors);
      }
      hidden_ = ops::gather_rows(hidden_, at::cat(index));
      layout_changed();
    }
  }

  // Policies that act on this layer's cache: rows of image tokens leave, each KV head its own.
  void act_on_cache(int layer) {
    if (!any_acts(Site::kCache, layer)) return;
    selecting_.start();
    for (size_t s = 0; s < sequences_.size(); ++s) {
      Sequence& sequence = sequences_[s];
      if (!sequence.walk.is_next(Site::kCache, layer)) continue;
      const TokenLayout layout = sequence.walk.layout();
      const std::vector<at::Tensor> signals = signals_for(s);
      const at::Tensor kept = sequence.walk.act(signals).kept_per_head;
      sequence.traces.clear();
      acted(s);
      LayerCache& cache = cache_[layer];
      const at::Tensor rows = cached_rows(layout, kept);
      const at::Tensor key = rows_of(cache.key(), s), value = rows_of(cache.value(), s);
      const auto [new_key, new_value] = ops::compact_kv(key, value, rows);
      pending_cache_.push_back({s, new_key, new_value});
    }
    for (const auto& [s, key, value] : pending_cache_) cache_[layer].replace(s, key, value, {});
    pending_cache_.clear();
    selecting_.stop();
  }

  // [g, k'] rows that stay in each KV head: everything but image tokens, and the kept ones, in order.
  static at::Tensor cached_rows(const TokenLayout& layout, const at::Tensor& kept) {
    const int64_t n = layout.num_tokens(), num_left = n - layout.num_image_tokens() + kept.size(1);
    at::Tensor leaves = at::zeros({kept.size(0), n}, layout.image_tokens.options());
    leaves.index_fill_(1, layout.image_tokens, n);
    leaves.scatter_(1, layout.image_tokens.index_select(0, kept.flatten()).view(kept.sizes()), 0);
    const at::Tensor rank = at::arange(n, layout.image_tokens.options()) + leaves;  // dropped rows sort to the end
    return std::get<0>(rank.sort(1)).slice(1, 0, num_left);
  }

  void keep_traces(int layer, const QueryKeyValue& qkv, const at::Tensor& lse) {
    for (size_t s = 0; s < sequences_.size(); ++s) {
      const bool is_read = std::ranges::any_of(sequences_[s].walk.needs(), [&](const Signal& signal) {
        return std::ranges::count(layers_read(signal), layer) > 0;
      });
      if (is_read)
        sequences_[s].traces[layer] = {rows_of(qkv.query, s), rows_of(qkv.key, s),
                                       lse.slice(1, begin_[s], begin_[s + 1])};
    }
  }

  void count(int layer) {
    for (size_t s = 0; s < sequences_.size(); ++s) {
      Sequence& sequence = sequences_[s];
      const TokenLayout& layout = sequence.walk.layout();
      sequence.stats.tokens_per_layer.push_back(lengths_[s]);
      sequence.image_of_tokens.push_back(layout.image);
      sequence.next_position[layer] =
          sequence.walk.positions() == Positions::kCompact ? lengths_[s] : sequence.prompt.next_position;
    }
  }

  void run_layer(int layer) {
    const DecoderLayerWeights& w = model_.weights.decoder.layers[layer];
    count(layer);
    const QueryKeyValue qkv = project_qkv(config_, w, hidden_, rotary_);
    const ops::OptionalTensor window_position =
        config_.sliding_window > 0 ? ops::OptionalTensor(position_id_) : std::nullopt;
    cache_[layer].set(qkv.key, qkv.value, lengths_);
    if (config_.sliding_window > 0) cache_[layer].set_positions(position_id_);
    if (only_last_rows_matter(layer)) return finish_last_rows(w, qkv);
    const auto [attended, lse] =
        ops::attention(qkv.query, qkv.key, qkv.value, query_begin_, key_begin_, key_length_, attention_scale(config_),
                       /*is_causal=*/true, config_.sliding_window, window_position, window_position);
    if (hooks_.on_layer)
      for (size_t s = 0; s < sequences_.size(); ++s)
        hooks_.on_layer({layer, s, sequences_[s].walk.layout(), rows_of(hidden_, s), rows_of(qkv.query, s),
                         rows_of(qkv.key, s), lse.slice(1, begin_[s], begin_[s + 1])});
    keep_traces(layer, qkv, lse);
    act_on_cache(layer);
    hidden_ = add_attention(w, hidden_, attended);
    act(Site::kAfterAttention, layer);
    hidden_ = add_mlp(config_, w, hidden_);
  }

  // Behind the last layer nobody reads any row but the last token's: there the others need keys and values, but neither
  // attention nor MLP.
  bool only_last_rows_matter(int layer) const {
    return layer + 1 == config_.num_layers && !hooks_.on_layer && !hooks_.on_output &&
           std::ranges::none_of(sequences_, [](const Sequence& s) { return s.walk.next() != nullptr; });
  }

  at::Tensor last_rows() const {
    std::vector<int64_t> last;
    for (size_t s = 0; s < sequences_.size(); ++s) last.push_back(begin_[s + 1] - 1);
    return at::tensor(last, at::kLong).to(model_.device);
  }

  // Leaves one row per sequence in hidden_.
  void finish_last_rows(const DecoderLayerWeights& w, const QueryKeyValue& qkv) {
    const auto b = static_cast<int64_t>(sequences_.size());
    const at::Tensor last = last_rows();
    ops::OptionalTensor query_position, key_position;
    if (config_.sliding_window > 0) {
      query_position = position_id_.index_select(0, last);
      key_position = position_id_;
    }
    const auto [attended, unused] = ops::attention(
        qkv.query.index_select(0, last), qkv.key, qkv.value, at::arange(b + 1, at::kLong), key_begin_, key_length_,
        attention_scale(config_), /*is_causal=*/true, config_.sliding_window, query_position, key_position);
    hidden_ = add_mlp(config_, w, add_attention(w, hidden_.index_select(0, last), attended));
    for (int64_t s = 0; s <= b; ++s) begin_[static_cast<size_t>(s)] = s;
  }

  at::Tensor output() {
    for (size_t s = 0; s < sequences_.size(); ++s) {
      Sequence& sequence = sequences_[s];
      if (hooks_.on_output) hooks_.on_output(s, sequence.walk.layout(), rows_of(hidden_, s));
      sequence.stats.prefill_flops = prefill_flops(config_, sequence.stats.tokens_per_layer);
      for (const LayerCache& layer : cache_) sequence.stats.kv_tokens_per_layer.push_back(layer.length(s));
    }
    const at::Tensor rows = hidden_.index_select(0, last_rows());
    return logits(model_.weights.decoder, final_norm(config_, model_.weights.decoder, rows));
  }

  struct PendingCache {
    size_t sequence;
    at::Tensor key, value;
  };

  const LoadedModel& model_;
  const DecoderConfig& config_;
  std::span<Sequence> sequences_;
  KvCache& cache_;
  const PrefillHooks& hooks_;

  at::Tensor hidden_;       // [sum of n, d]
  at::Tensor position_id_;  // int64 [sum of n]
  Rotary rotary_;
  std::vector<int64_t> lengths_, begin_;
  at::Tensor query_begin_, key_begin_, key_length_;
  std::vector<PendingCache> pending_cache_;
  DeviceStopwatch total_, selecting_;
};

}  // namespace

at::Tensor prefill(const LoadedModel& model, std::span<Sequence> sequences, KvCache& cache, const PrefillHooks& hooks) {
  return Prefill(model, sequences, cache, hooks).run();
}

}  // namespace espalier
