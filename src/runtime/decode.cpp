// SPDX-License-Identifier: Apache-2.0
#include "runtime/decode.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/tensor.h>

#include "espalier/ops.h"
#include "runtime/decode_token.h"

namespace espalier {

namespace {

// Layers of one span share their positions; the rotation is made anew only where they change (positions=compact).
class Rotations {
 public:
  Rotations(const LoadedModel& model, std::span<Sequence> sequences, const std::vector<size_t>& active)
      : model_(model), sequences_(sequences), active_(active) {}

  const Rotary& at_layer(int layer) {
    std::vector<int64_t> positions;
    for (const size_t s : active_) positions.push_back(sequences_[s].next_position[layer]++);
    if (positions != positions_) {
      positions_ = std::move(positions);
      position_id_ = at::tensor(positions_, at::kLong).to(model_.device);
      rotary_ = rotary(model_.config.decoder, position_id_, model_.dtype);
    }
    return rotary_;
  }
  const at::Tensor& position_id() const { return position_id_; }

 private:
  const LoadedModel& model_;
  std::span<Sequence> sequences_;
  const std::vector<size_t>& active_;
  std::vector<int64_t> positions_;
  at::Tensor position_id_;
  Rotary rotary_;
};

}  // namespace

at::Tensor decode_step(const LoadedModel& model, std::span<Sequence> sequences, const std::vector<size_t>& active,
                       const std::vector<int32_t>& ids, KvCache& cache) {
  const DecoderConfig& config = model.config.decoder;
  const std::vector<int64_t> wide(ids.begin(), ids.end());
  const at::Tensor query_begin = at::arange(static_cast<int64_t>(active.size()) + 1, at::kLong);
  Rotations rotations(model, sequences, active);
  const auto attend = [&](int layer, const QueryKeyValue& qkv) {
    LayerCache& own = cache[layer];
    own.append(active, qkv.key, qkv.value, rotations.position_id());
    ops::OptionalTensor query_position, key_position;
    if (config.sliding_window > 0) {
      query_position = rotations.position_id();
      key_position = own.position_id();
    }
    return std::get<0>(ops::attention(qkv.query, own.key(), own.value(), query_begin, own.begins(active),
                                      own.lengths(active), attention_scale(config), /*is_causal=*/true,
                                      config.sliding_window, query_position, key_position));
  };
  return decode_token(
      model, at::tensor(wide, at::kLong).to(model.device),
      [&](int layer) -> const Rotary& { return rotations.at_layer(layer); }, attend);
}

}  // namespace espalier
