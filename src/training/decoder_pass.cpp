// SPDX-License-Identifier: Apache-2.0
#include "training/decoder_pass.h"

#include <torch/types.h>

#include "espalier/ops.h"
#include "families/llava/tower.h"
#include "model/decoder.h"

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

// What runs through the layers: the rows that are left, and where each came from.
struct Stream {
  at::Tensor x, position_id, begin, source;
};

Stream without_images(const Stream& s, const TrainingBatch& batch) {
  at::Tensor stays = torch::ones({batch.ids.size(0)}, torch::kBool);
  stays.index_fill_(0, batch.image_rows, false);
  const at::Tensor rows = stays.nonzero().squeeze(1);
  const at::Tensor counts = torch::cat({torch::zeros({1}, torch::kLong), stays.to(torch::kLong).cumsum(0)});
  return {s.x.index_select(0, rows), s.position_id.index_select(0, rows), counts.index_select(0, s.begin), rows};
}

}  // namespace

DecoderPass run_decoder(const LlavaConfig& config, const LlavaWeights& weights, const TrainingBatch& batch,
                        const DecoderPassOptions& options) {
  const DecoderConfig& decoder = config.decoder;
  const bool has_images = batch.image_rows.defined() && batch.image_rows.numel() > 0;
  Stream stream{embed(config, weights, batch), batch.position_id, batch.begin, {}};
  Rotary angles = rotary(decoder, stream.position_id, stream.x.scalar_type());
  const ShareGroups groups = has_images && options.share_layers > 0 ? share_groups(batch) : ShareGroups();
  DecoderPass pass;
  for (int l = 0; l < decoder.num_layers; ++l) {
    if (l == options.drop_images_before && has_images) {
      stream = without_images(stream, batch);
      angles = rotary(decoder, stream.position_id, stream.x.scalar_type());
    }
    const DecoderLayerWeights& layer = weights.decoder.layers[static_cast<size_t>(l)];
    const QueryKeyValue qkv = project_qkv(decoder, layer, stream.x, angles);
    const int64_t b = stream.begin.size(0) - 1;
    const at::Tensor first = stream.begin.narrow(0, 0, b).contiguous();
    const auto [attended, lse] = ops::attention(qkv.query, qkv.key, qkv.value, stream.begin, first, stream.begin.diff(),
                                                attention_scale(decoder), /*is_causal=*/true);
    if (has_images && l < options.share_layers) {
      const at::Tensor received = ops::attention_probe(
          qkv.query, qkv.key, lse, groups.rows, groups.row_begin, groups.columns, groups.column_begin,
          attention_scale(decoder), /*is_causal=*/true, ops::HeadReduction::kMean, /*reduce_rows=*/true);
      const at::Tensor share = received.sum() / static_cast<double>(groups.groups * options.share_layers);
      pass.image_share = pass.image_share.defined() ? pass.image_share + share : share;
    }
    stream.x = add_mlp(decoder, layer, add_attention(layer, stream.x, attended));
  }
  at::Tensor scored = batch.scored_rows;
  if (stream.source.defined()) scored = torch::searchsorted(stream.source, scored);
  const at::Tensor rows = stream.x.index_select(0, scored);
  pass.logits = logits(weights.decoder, final_norm(decoder, weights.decoder, rows));
  return pass;
}

}  // namespace espalier
