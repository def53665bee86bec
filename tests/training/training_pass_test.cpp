// SPDX-License-Identifier: Apache-2.0
// The training pass over packed sequences: equal to the slow decoder sequence by sequence, differentiable to the last
// parameter (float64 against finite differences, the late-reading loss included), and without images from a layer on
// equal to hiding their columns there.
#include "training/training_pass.h"

#include <gtest/gtest.h>
#include <torch/types.h>

#include "families/llava/tower.h"
#include "model/decoder.h"
#include "tests/support/reference_decoder.h"
#include "tests/support/tensors.h"
#include "training/batch_builder.h"
#include "training/layer_surgery.h"
#include "training/parameters.h"

namespace espalier {
namespace {

using test::int64_tensor;
using test::random_tensor;

LlavaConfig small_config(int layers = 2) {
  LlavaConfig c;
  c.vision = {
      .hidden_size = 6, .intermediate_size = 8, .num_layers = 2, .num_heads = 2, .image_size = 4, .patch_size = 2};
  c.decoder = {.hidden_size = 8,
               .intermediate_size = 10,
               .num_layers = layers,
               .num_heads = 2,
               .num_kv_heads = 1,
               .head_dim = 4,
               .vocab_size = 11};
  return c;
}

// Two sequences; rows 1, 2 and 7, 8, 9 are image tokens.
TrainingBatch small_batch(at::ScalarType dtype) {
  return {.ids = int64_tensor({1, 0, 0, 5, 6, 1, 3, 0, 0, 0, 7, 2}),
          .position_id = int64_tensor({0, 1, 4, 5, 6, 0, 1, 2, 4, 5, 6, 7}),
          .begin = int64_tensor({0, 5, 12}),
          .image_rows = int64_tensor({1, 2, 7, 8, 9}),
          .features = random_tensor({5, 6}, at::kDouble, 1).to(dtype),
          .scored_rows = int64_tensor({3, 4, 10, 11}),
          .targets = int64_tensor({6, 2, 8, 9}),
          .weights = torch::tensor({1.0f, 0.1f, 1.0f, 0.5f}),
          .topic = {0, -1, 1, 1}};
}

Parameters random_parameters(const LlavaConfig& config) {
  Parameters parameters = initial_parameters(config, 3);
  uint64_t seed = 100;
  for (const Parameter& p : parameters.all())  // norms and biases away from 1 and 0
    parameters.set(p.name, p.master + 0.2 * random_tensor(p.master.sizes(), at::kFloat, seed++));
  return parameters;
}

at::Tensor without(const at::Tensor& mask, const std::vector<int64_t>& columns) {
  at::Tensor result = mask.clone();
  for (const int64_t c : columns) {
    result.select(1, c).fill_(false);
    result[c][c] = true;
  }
  return result;
}

// The logits of one sequence from the slow decoder; image columns hidden from `hidden_from` on.
at::Tensor reference(const LlavaConfig& config, const LlavaWeights& weights, const TrainingBatch& batch, int64_t s,
                     int hidden_from) {
  const int64_t begin = batch.begin[s].item<int64_t>(), end = batch.begin[s + 1].item<int64_t>(), n = end - begin;
  at::Tensor hidden = embed_tokens(weights.decoder, batch.ids.slice(0, begin, end)).clone();
  const at::Tensor image = project(config, weights.projector, batch.features);
  std::vector<int64_t> columns;
  for (int64_t i = 0; i < batch.image_rows.size(0); ++i) {
    const int64_t row = batch.image_rows[i].item<int64_t>();
    if (row < begin || row >= end) continue;
    hidden[row - begin].copy_(image[i]);
    columns.push_back(row - begin);
  }
  const at::Tensor causal = torch::ones({n, n}, torch::kBool).tril();
  return test::reference_logits(
      config.decoder, weights.decoder, hidden, batch.position_id.slice(0, begin, end),
      [&](int layer, int) { return layer >= hidden_from ? without(causal, columns) : causal; });
}

TEST(TrainingPass, EqualsTheSlowDecoder) {
  const torch::NoGradGuard no_gradients;
  const LlavaConfig config = small_config();
  const LlavaWeights weights = bind_parameters(config, random_parameters(config), at::kFloat);
  const TrainingBatch batch = small_batch(at::kFloat);
  for (const int dropped_before : {-1, 0, 1}) {
    const at::Tensor logits = run_decoder(config, weights, batch, {.drop_images_before = dropped_before}).logits;
    const int hidden_from = dropped_before < 0 ? 100 : dropped_before;
    const at::Tensor first = reference(config, weights, batch, 0, hidden_from),
                     second = reference(config, weights, batch, 1, hidden_from);
    test::expect_close(logits, torch::stack({first[3], first[4], second[5], second[6]}), 1e-5,
                       "before layer " + std::to_string(dropped_before));
  }
}

TEST(TrainingPass, ImageShareIsTheMeanOfTheProbabilities) {
  const torch::NoGradGuard no_gradients;
  LlavaConfig config = small_config(1);
  const LlavaWeights weights = bind_parameters(config, random_parameters(config), at::kDouble);
  const TrainingBatch batch = small_batch(at::kDouble);
  const double share = run_decoder(config, weights, batch, {.share_layers = 1}).image_share.item<double>();
  // One layer by hand: rows behind the first picture (3, 4 and 10, 11) against image columns, mean over rows, heads and
  // sequences.
  at::Tensor hidden = embed_tokens(weights.decoder, batch.ids).clone();
  hidden.index_copy_(0, batch.image_rows, project(config, weights.projector, batch.features));
  const QueryKeyValue qkv = project_qkv(config.decoder, weights.decoder.layers[0], hidden,
                                        rotary(config.decoder, batch.position_id, at::kDouble));
  double expected = 0;
  const struct {
    int64_t begin, end;
    std::vector<int64_t> rows, columns;
  } sequences[] = {{0, 5, {3, 4}, {1, 2}}, {5, 12, {10, 11}, {7, 8, 9}}};
  for (const auto& s : sequences)
    for (const int64_t row : s.rows)
      for (int64_t h = 0; h < 2; ++h) {
        const at::Tensor scores =
            torch::mv(qkv.key.slice(0, s.begin, row + 1).select(1, 0), qkv.query[row][h]) / 2.0;  // sqrt(4)
        const at::Tensor p = torch::softmax(scores, 0);
        for (const int64_t c : s.columns) expected += p[c - s.begin].item<double>() / (2 * 2 * 2);
      }
  EXPECT_NEAR(share, expected, 1e-9);
}

TEST(TrainingPass, GradientsEqualFiniteDifferences) {
  const LlavaConfig config = small_config();
  const TrainingBatch batch = small_batch(at::kDouble);
  const Parameters parameters = random_parameters(config);
  std::vector<std::string> names;
  std::vector<at::Tensor> inputs;
  for (const Parameter& p : parameters.all())
    if (!p.name.starts_with("vision.")) {
      names.push_back(p.name);
      inputs.push_back(p.master.to(at::kDouble));
    }
  test::expect_gradients_match(
      [&](const std::vector<at::Tensor>& in) {
        const LlavaWeights weights = bind_weights(config, [&](const std::string& name, at::IntArrayRef shape) {
          const auto at = std::ranges::find(names, name) - names.begin();
          return at < std::ssize(in) ? in[static_cast<size_t>(at)] : torch::zeros(shape, torch::kDouble);
        });
        const TrainingPass pass = run_decoder(config, weights, batch, {.share_layers = 2});
        return std::vector<at::Tensor>{answer_loss(pass.logits, batch) + 0.3 * pass.image_share};
      },
      inputs, 1e-6);
}

// What a decoder of five layers says without two of them, the lower one first. Bound weights share the masters' memory,
// which surgery is about to overwrite.
at::Tensor logits_without(const LlavaConfig& deep, const Parameters& parameters, const TrainingBatch& batch, int lower,
                          int upper) {
  LlavaWeights shallow = bind_parameters(deep, parameters, at::kFloat);
  for (const int layer : {upper, lower}) shallow.decoder.layers.erase(shallow.decoder.layers.begin() + layer);
  LlavaConfig three = deep;
  three.decoder.num_layers = 3;
  return run_decoder(three, shallow, batch).logits.clone();
}

TEST(LayerSurgery, LayersInFrontThatWriteNothingChangeNothing) {
  const torch::NoGradGuard no_gradients;
  const LlavaConfig deep = small_config(5);
  Parameters parameters = random_parameters(deep);
  const TrainingBatch batch = small_batch(at::kFloat);
  const at::Tensor expected = logits_without(deep, parameters, batch, 1, 3);
  move_layers_back(deep, parameters, {1, 3}, 3);
  test::expect_close(run_decoder(deep, bind_parameters(deep, parameters, at::kFloat), batch).logits, expected, 1e-6);
}

TEST(LayerSurgery, SilentLayersAreAsIfTheyWereNotThere) {
  const torch::NoGradGuard no_gradients;
  const LlavaConfig deep = small_config(5);
  Parameters parameters = random_parameters(deep);
  const TrainingBatch batch = small_batch(at::kFloat);
  const at::Tensor expected = logits_without(deep, parameters, batch, 0, 1);
  const at::Tensor query = parameters.at(layer_prefix(0) + "self_attn.q_proj.weight").clone();
  silence_first_layers(parameters, 2);
  test::expect_close(run_decoder(deep, bind_parameters(deep, parameters, at::kFloat), batch).logits, expected, 1e-6);
  // They can be trained from there: what they would write is what is left out.
  EXPECT_TRUE(parameters.at(layer_prefix(0) + "self_attn.q_proj.weight").equal(query));
}

}  // namespace
}  // namespace espalier
