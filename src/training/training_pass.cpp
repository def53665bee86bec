// SPDX-License-Identifier: Apache-2.0
#include "training/training_pass.h"

#include <torch/types.h>

#include "espalier/ops.h"
#include "families/llava/tower.h"
#include "model/decoder_layers.h"

namespace espalier {

namespace {

// Which rows and columns `image_share` averages: for each sequence with pictures, its text rows behind the first one,
// against all its image tokens.
struct ShareGroups {
  at::Tensor rows, row_begin, columns, column_begin;
  int64_t groups = 0;
};

ShareGroups share_groups(const TrainingBatch& batch) {
  const int64_t n = batch.ids.size(0);
  std::vector<char> is_image(static_cast<size_t>(n), 0);
  const auto image_rows = batch.image_rows.accessor<int64_t, 1>();
  for (int64_t i = 0; i < image_rows.size(0); ++i) is_image[static_cast<size_t>(image_rows[i])] = 1;
  std::vector<int64_t> rows, columns, row_begin = {0}, column_begin = {0};
  const auto begin = batch.begin.accessor<int64_t, 1>();
  for (int64_t s = 0; s + 1 < begin.size(0); ++s) {
    bool seen = false;
    for (int64_t t = begin[s]; t < begin[s + 1]; ++t) {
      const bool image = is_image[static_cast<size_t>(t)] != 0;
      seen = seen || image;
      if (image) columns.push_back(t);
      if (seen && !image) rows.push_back(t);
    }
    row_begin.push_back(static_cast<int64_t>(rows.size()));
    column_begin.push_back(static_cast<int64_t>(columns.size()));
  }
  const auto tensor = [](const std::vector<int64_t>& v) { return torch::tensor(v, torch::kLong); };
  return {tensor(rows), tensor(row_begin), tensor(columns), tensor(column_begin), begin.size(0) - 1};
}

at::Tensor embed(const LlavaConfig& config, const LlavaWeights& weights, const TrainingBatch& batch) {
  const at::Tensor text = embed_tokens(weights.decoder, batch.ids);
  if (!batch.image_rows.defined() || batch.image_rows.numel() == 0) return text;
  const at::Tensor features = batch.features.to(text.scalar_type());
  return text.index_copy(0, batch.image_rows, project(config, weights.projector, features));
}

class TrainingSteps {
 public:
  TrainingSteps(const DecoderConfig& config, const TrainingBatch& batch, const TrainingPassOptions& options)
      : config_(config),
        batch_(batch),
        options_(options),
        has_images_(batch.image_rows.defined() && batch.image_rows.numel() > 0),
        begin_(batch.begin) {
    if (has_images_ && options.share_layers > 0) groups_ = share_groups(batch);
  }

  void before_layer(int layer, LayerRows& rows) {
    if (layer == 0) rows.rotary = rotary(config_, batch_.position_id, rows.hidden.scalar_type());
    if (layer == options_.drop_images_before && has_images_) drop_images(rows);
  }

  at::Tensor attend(int layer, const QueryKeyValue& qkv, const LayerRows&) {
    const int64_t b = begin_.size(0) - 1;
    const at::Tensor first = begin_.narrow(0, 0, b).contiguous();
    const auto [attended, lse] = ops::attention({.query = qkv.query,
                                                 .key = qkv.key,
                                                 .value = qkv.value,
                                                 .query_begin = begin_,
                                                 .key_begin = first,
                                                 .key_length = begin_.diff(),
                                                 .scale = attention_scale(config_)});
    if (has_images_ && layer < options_.share_layers) {
      const at::Tensor received = ops::attention_probe({.layer = {qkv.query, qkv.key, lse},
                                                        .rows = groups_.rows,
                                                        .row_begin = groups_.row_begin,
                                                        .columns = groups_.columns,
                                                        .column_begin = groups_.column_begin,
                                                        .scale = attention_scale(config_)});
      const at::Tensor share = received.sum() / static_cast<double>(groups_.groups * options_.share_layers);
      image_share_ = image_share_.defined() ? image_share_ + share : share;
    }
    return attended;
  }

  void after_attention(int, const LayerRows&) {}

  const at::Tensor& image_share() const { return image_share_; }
  // Where the scored rows are now.
  at::Tensor scored_rows() const {
    return source_.defined() ? torch::searchsorted(source_, batch_.scored_rows) : batch_.scored_rows;
  }

 private:
  void drop_images(LayerRows& rows) {
    at::Tensor stays = torch::ones({batch_.ids.size(0)}, torch::kBool);
    stays.index_fill_(0, batch_.image_rows, false);
    source_ = stays.nonzero().squeeze(1);
    const at::Tensor counts = torch::cat({torch::zeros({1}, torch::kLong), stays.to(torch::kLong).cumsum(0)});
    begin_ = counts.index_select(0, begin_);
    rows.hidden = rows.hidden.index_select(0, source_);
    rows.rotary = rotary(config_, batch_.position_id.index_select(0, source_), rows.hidden.scalar_type());
  }

  const DecoderConfig& config_;
  const TrainingBatch& batch_;
  const TrainingPassOptions& options_;
  bool has_images_;
  at::Tensor begin_;   // of each sequence, as rows are now
  at::Tensor source_;  // of each row that is left; undefined while all are there
  ShareGroups groups_;
  at::Tensor image_share_;
};

}  // namespace

TrainingPass run_decoder(const LlavaConfig& config, const LlavaWeights& weights, const TrainingBatch& batch,
                         const TrainingPassOptions& options) {
  TrainingSteps steps(config.decoder, batch, options);
  LayerRows rows{embed(config, weights, batch), {}};
  run_layers(config.decoder, weights.decoder, 0, config.decoder.num_layers, rows, steps);
  const at::Tensor scored = rows.hidden.index_select(0, steps.scored_rows());
  return {logits(weights.decoder, final_norm(config.decoder, weights.decoder, scored)), steps.image_share()};
}

}  // namespace espalier
