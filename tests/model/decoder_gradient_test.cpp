// SPDX-License-Identifier: Apache-2.0
// The decoder path is differentiable, with a soft weight per key: what training needs, so that there is no second
// decoder. Float64 layers against finite differences; float32 autograd against float64; kernels where no gradient is
// asked for.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <vector>

#include "espalier/ops.h"
#include "model/decoder.h"
#include "tests/support/reference_decoder.h"
#include "tests/support/tensors.h"

namespace espalier {
namespace {

using test::int64_tensor;
using test::random_tensor;

constexpr int64_t kTokens = 6;

DecoderConfig small_config() {
  DecoderConfig c;
  c.hidden_size = 8;
  c.intermediate_size = 10;
  c.num_layers = 1;
  c.num_heads = 4;
  c.num_kv_heads = 2;
  c.head_dim = 4;
  c.vocab_size = 7;
  return c;
}

// Small random weights of one layer, in the order norm1, norm2, q, k, v, o, gate, up, down.
std::vector<at::Tensor> random_weights(const DecoderConfig& c, at::ScalarType dtype) {
  const int64_t d = c.hidden_size, q = c.num_heads * c.head_dim, kv = c.num_kv_heads * c.head_dim,
                f = c.intermediate_size;
  const std::vector<std::vector<int64_t>> shapes = {{d}, {d}, {q, d}, {kv, d}, {kv, d}, {d, q}, {f, d}, {f, d}, {d, f}};
  std::vector<at::Tensor> weights;
  for (size_t i = 0; i < shapes.size(); ++i)
    weights.push_back(0.4 * random_tensor(shapes[i], at::kDouble, 10 + i) + (i < 2 ? 1.0 : 0.0));
  for (at::Tensor& w : weights) w = w.to(dtype);
  return weights;
}

DecoderLayerWeights as_layer(const std::vector<at::Tensor>& w, size_t from = 0) {
  return {.norm1 = w[from],
          .norm2 = w[from + 1],
          .q = w[from + 2],
          .k = w[from + 3],
          .v = w[from + 4],
          .o = w[from + 5],
          .gate = w[from + 6],
          .up = w[from + 7],
          .down = w[from + 8]};
}

// One whole layer on one sequence.
at::Tensor run_layer(const DecoderConfig& c, const DecoderLayerWeights& w, const at::Tensor& x,
                     const at::Tensor& position_id, const at::Tensor& key_weight) {
  const int64_t n = x.size(0);
  const QueryKeyValue qkv = project_qkv(c, w, x, rotary(c, position_id, x.scalar_type()));
  const ops::OptionalTensor weight = key_weight.defined() ? ops::OptionalTensor(key_weight) : std::nullopt;
  const auto [attended, lse] = ops::attention({.query = qkv.query,
                                               .key = qkv.key,
                                               .value = qkv.value,
                                               .query_begin = int64_tensor({0, n}),
                                               .key_begin = int64_tensor({0}),
                                               .key_length = int64_tensor({n}),
                                               .scale = attention_scale(c),
                                               .key_weight = weight});
  return add_mlp(c, w, add_attention(w, x, attended));
}

at::Tensor positions() {
  return at::arange(kTokens, at::kLong);
}
at::Tensor random_input(at::ScalarType dtype) {
  return random_tensor({kTokens, 8}, at::kDouble, 1).to(dtype);
}
at::Tensor soft_weights(at::ScalarType dtype) {
  return (0.1 + 0.8 * random_tensor({kTokens}, at::kDouble, 2).sigmoid()).to(dtype);
}

// With respect to the input, the weight per key and every parameter of the layer.
TEST(DecoderGradient, LayerWithSoftKeysEqualsFiniteDifferences) {
  const DecoderConfig c = small_config();
  std::vector<at::Tensor> inputs = {random_input(at::kDouble), soft_weights(at::kDouble)};
  for (const at::Tensor& w : random_weights(c, at::kDouble)) inputs.push_back(w);
  test::expect_gradients_match(
      [&](const std::vector<at::Tensor>& in) {
        return std::vector<at::Tensor>{run_layer(c, as_layer(in, 2), in[0], positions(), in[1])};
      },
      inputs, 1e-6);
}

// Qwen2: biases on queries, keys and values, and position ids of three parts.
TEST(DecoderGradient, LayerWithBiasesAndThreePartPositionsEqualsFiniteDifferences) {
  DecoderConfig c = small_config();
  c.qkv_bias = true;
  c.mrope_section = {0, 1, 1};
  const at::Tensor position_id =
      int64_tensor({0, 1, 2, 2, 2, 4, 0, 1, 2, 2, 3, 4, 0, 1, 2, 3, 2, 4}).view({3, kTokens});
  std::vector<at::Tensor> inputs = {random_input(at::kDouble)};
  for (const int64_t size : {16, 8, 8}) inputs.push_back(random_tensor({size}, at::kDouble, 30 + inputs.size()));
  for (const at::Tensor& w : random_weights(c, at::kDouble)) inputs.push_back(w);
  test::expect_gradients_match(
      [&](const std::vector<at::Tensor>& in) {
        DecoderLayerWeights w = as_layer(in, 4);
        w.q_bias = in[1];
        w.k_bias = in[2];
        w.v_bias = in[3];
        return std::vector<at::Tensor>{run_layer(c, w, in[0], position_id, {})};
      },
      inputs, 1e-6);
}

TEST(DecoderGradient, EmbeddingAndHeadEqualFiniteDifferences) {
  const DecoderConfig c = small_config();
  const at::Tensor ids = int64_tensor({3, 0, 3, 6});
  test::expect_gradients_match(
      [&](const std::vector<at::Tensor>& in) {
        const DecoderWeights w{.embed_tokens = in[0], .layers = {}, .norm = in[1], .head = in[2]};
        return std::vector<at::Tensor>{logits(w, final_norm(c, w, embed_tokens(w, ids)))};
      },
      {random_tensor({7, 8}, at::kDouble, 3), random_tensor({8}, at::kDouble, 4),
       random_tensor({7, 8}, at::kDouble, 5)},
      1e-6);
}

// Weight 0 takes the token away for the others, so that a learned policy trains on what it will do.
TEST(DecoderGradient, KeyWeightZeroEqualsRemoving) {
  const DecoderConfig c = small_config();
  const DecoderLayerWeights w = as_layer(random_weights(c, at::kDouble));
  const at::Tensor x = random_input(at::kDouble);
  at::Tensor key_weight = at::ones({kTokens}, at::kDouble);
  key_weight[1] = 0;
  key_weight[4] = 0;
  const at::Tensor left = int64_tensor({0, 2, 3, 5});
  const at::Tensor soft = run_layer(c, w, x, positions(), key_weight);
  const at::Tensor removed = run_layer(c, w, x.index_select(0, left), left, {});
  test::expect_close(soft.index_select(0, left), removed, 1e-12);
  const at::Tensor plain = run_layer(c, w, x, positions(), {});
  EXPECT_GT((plain.index_select(0, left) - removed).abs().max().item<double>(), 1e-3);  // or nothing would be shown
}

// The row's own key is exempt: a token with weight 0 still sees itself.
TEST(DecoderGradient, OwnKeyCountsWithWeightOne) {
  const DecoderConfig c = small_config();
  const DecoderLayerWeights w = as_layer(random_weights(c, at::kDouble));
  const at::Tensor x = random_input(at::kDouble);
  at::Tensor key_weight = at::zeros({kTokens}, at::kDouble);
  const at::Tensor alone = run_layer(c, w, x, positions(), key_weight);
  for (int64_t t = 0; t < kTokens; ++t)
    test::expect_close(alone.slice(0, t, t + 1), run_layer(c, w, x.slice(0, t, t + 1), int64_tensor({t}), {}), 1e-12);
}

TEST(DecoderGradient, KeyWeightOneEqualsNone) {
  const DecoderConfig c = small_config();
  for (const auto dtype : {at::kDouble, at::kFloat}) {
    const DecoderLayerWeights w = as_layer(random_weights(c, dtype));
    const at::Tensor x = random_input(dtype), ones = at::ones({kTokens}, dtype);
    test::expect_close(run_layer(c, w, x, positions(), ones), run_layer(c, w, x, positions(), {}),
                       dtype == at::kDouble ? 1e-12 : 2e-6);
  }
}

std::vector<at::Tensor> gradients(const DecoderConfig& c, at::ScalarType dtype) {
  std::vector<at::Tensor> leaves = {random_input(dtype), soft_weights(dtype)};
  for (const at::Tensor& w : random_weights(c, dtype)) leaves.push_back(w);
  for (at::Tensor& leaf : leaves) leaf = leaf.detach().clone().set_requires_grad(true);
  const at::Tensor out = run_layer(c, as_layer(leaves, 2), leaves[0], positions(), leaves[1]);
  (out * random_tensor({kTokens, 8}, at::kDouble, 9).to(dtype)).sum().backward();
  std::vector<at::Tensor> grads;
  for (const at::Tensor& leaf : leaves) grads.push_back(leaf.grad());
  return grads;
}

TEST(DecoderGradient, Float32AutogradEqualsFloat64) {
  const DecoderConfig c = small_config();
  const std::vector<at::Tensor> narrow = gradients(c, at::kFloat), wide = gradients(c, at::kDouble);
  ASSERT_EQ(narrow.size(), 11U);
  for (size_t i = 0; i < narrow.size(); ++i) {
    ASSERT_TRUE(narrow[i].defined()) << i;
    EXPECT_EQ(narrow[i].scalar_type(), at::kFloat);
    test::expect_close(narrow[i], wide[i], 2e-5, "leaf " + std::to_string(i));
  }
}

// The same step with and without a gradient asked for: kernels inside, composed form outside, one result.
TEST(DecoderGradient, KernelsServeWhereNoGradientIsAskedFor) {
  const DecoderConfig c = small_config();
  std::vector<at::Tensor> weights = random_weights(c, at::kFloat);
  const at::Tensor x = random_input(at::kFloat);
  for (at::Tensor& w : weights) w.set_requires_grad(true);
  const at::Tensor composed = run_layer(c, as_layer(weights), x, positions(), {});
  ASSERT_TRUE(composed.requires_grad());
  at::Tensor fused;
  {
    const c10::NoGradGuard no_gradients;
    fused = run_layer(c, as_layer(weights), x, positions(), {});
  }
  EXPECT_FALSE(fused.requires_grad());
  EXPECT_EQ(fused.grad_fn(), nullptr);
  test::expect_close(fused, composed, 2e-6);
}

// Against the float64 decoder of tests/support, which has no ops of the project in it: a stack of layers with grouped
// KV heads.
TEST(Decoder, StackOfLayersEqualsReference) {
  DecoderConfig c = small_config();
  c.num_layers = 3;
  DecoderWeights w{.embed_tokens = random_tensor({7, 8}, at::kFloat, 3),
                   .layers = {},
                   .norm = random_tensor({8}, at::kFloat, 4),
                   .head = {}};
  w.head = w.embed_tokens;
  for (uint64_t layer = 0; layer < 3; ++layer) {
    std::vector<at::Tensor> weights = random_weights(c, at::kFloat);
    for (at::Tensor& t : weights) t = t + 0.1 * random_tensor(t.sizes(), at::kFloat, 50 + layer);
    w.layers.push_back(as_layer(weights));
  }
  const at::Tensor ids = int64_tensor({1, 6, 2, 2, 0, 5}), position_id = int64_tensor({0, 1, 5, 6, 9, 100});
  at::Tensor x = embed_tokens(w, ids);
  const at::Tensor expected = test::reference_logits(c, w, x, position_id, [](int, int) {
    return at::ones({6, 6}, at::kBool).tril();
  });
  const c10::NoGradGuard no_gradients;
  for (const DecoderLayerWeights& layer : w.layers) x = run_layer(c, layer, x, position_id, {});
  test::expect_close(logits(w, final_norm(c, w, x)), expected, 1e-5);
}

}  // namespace
}  // namespace espalier
