// SPDX-License-Identifier: Apache-2.0
// The decoder under soft masks: the specification's vector, masks of 0 and 1 against columns hidden in the slow decoder
// (float64) and against the runtime that removes the tokens, gradients against finite differences through masks,
// thresholds and every loss.
#include "training/masked_pass.h"

#include <gtest/gtest.h>
#include <torch/types.h>

#include <cmath>
#include <map>

#include "espalier/policies/atp.h"
#include "families/families.h"
#include "families/llava/llava.h"
#include "layout/cut.h"
#include "model/decoder.h"
#include "runtime/generate.h"
#include "tests/support/folders.h"
#include "tests/support/reference_decoder.h"
#include "tests/support/tensors.h"
#include "training/atp_loss.h"
#include "training/atp_task.h"
#include "training/parameters.h"

namespace espalier {
namespace {

using test::int64_tensor;
using test::random_tensor;

// ---- W3: masked softmax ----

TEST(AttentionReceived, IsTheMaskedSoftmaxOfW3) {
  // One head of width 4; the keys are unit vectors, so that a query holds its logits.
  const at::Tensor query =
      torch::tensor({0., 0., 0., 0., 1., 0., 0., 0., 0., 1., 2., 0., 1., 1., 0., 2.}, torch::kDouble).view({4, 1, 4});
  const at::Tensor key = torch::eye(4, torch::kDouble).view({4, 1, 4});
  const at::Tensor weight = torch::tensor({1.0, 0.25, 0.5, 1.0}, torch::kDouble);
  const at::Tensor expected = torch::tensor({1., 0., 0., 0., .731059, .268941, 0., 0., .110270, .074936, .814793, 0.,
                                             .240835, .060209, .044299, .654657},
                                            torch::kDouble)
                                  .view({4, 4});
  // The log-sum-exp by hand: own key with weight 1.
  at::Tensor lse = torch::zeros({1, 4}, torch::kDouble);
  for (int64_t i = 0; i < 4; ++i) {
    double sum = 0;
    for (int64_t j = 0; j <= i; ++j)
      sum += std::exp(query[i][0][j].item<double>()) * (i == j ? 1.0 : weight[j].item<double>());
    lse[0][i] = std::log(sum);
  }
  for (int64_t i = 0; i < 4; ++i)
    test::expect_close(attention_received(query, key, lse, int64_tensor({i}), torch::arange(4), weight, 1.0),
                       expected[i], 1e-6, "row " + std::to_string(i));
  // Rows count by their weight.
  const at::Tensor all = attention_received(query, key, lse, torch::arange(4), torch::arange(4), weight, 1.0);
  test::expect_close(all, torch::matmul(weight, expected) / weight.sum(), 1e-6);
}

// ---- a small model ----

LlavaConfig small_config(int layers = 4) {
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

ModelFacts small_facts(const LlavaConfig& c) {
  return {.num_layers = c.decoder.num_layers,
          .hidden_size = c.decoder.hidden_size,
          .num_heads = c.decoder.num_heads,
          .num_kv_heads = c.decoder.num_kv_heads,
          .head_dim = c.decoder.head_dim};
}

// Text, a picture of 3 x 3, text, a second one, text: `text` tokens each.
std::shared_ptr<const PromptLayout> small_prompt(int64_t text) {
  auto layout = std::make_shared<PromptLayout>();
  int64_t at = 0;
  const auto add_text = [&] {
    layout->segments.push_back({.begin = at, .end = at + text, .example = 0});
    at += text;
  };
  add_text();
  for (int image = 0; image < 2; ++image) {
    layout->images.push_back({.grid = {3, 3}, .tiling = {}});
    layout->segments.push_back({.kind = Segment::Kind::kPatches,
                                .begin = at,
                                .end = at + 9,
                                .image = image,
                                .crop = 0,
                                .example = 0,
                                .grid = {3, 3}});
    at += 9;
    add_text();
  }
  finish_prompt_layout(*layout, at::kCPU);
  return layout;
}

MaskedSequence small_sequence(int64_t text, uint64_t seed) {
  const auto prompt = small_prompt(text);
  const int64_t n = prompt->num_tokens + 2;  // an answer of two tokens
  return {prompt, random_tensor({n, 8}, at::kDouble, seed), torch::arange(n)};
}

at::Tensor random_weight(const std::string& name, at::IntArrayRef shape) {
  const auto seed = static_cast<uint64_t>(std::hash<std::string>()(name) % 100000);
  const at::Tensor noise = random_tensor(shape, at::kDouble, seed);
  return name.find("norm") != std::string::npos ? 1 + 0.2 * noise : 0.5 * noise;
}

AtpModule random_module(int64_t hidden, int64_t inputs, uint64_t seed, at::ScalarType dtype, double bias) {
  const auto draw = [&](at::IntArrayRef shape) { return random_tensor(shape, at::kDouble, seed++).to(dtype); };
  return {draw({hidden, inputs}),        draw({hidden}),          draw({1, hidden}) * 0.5,
          torch::full({1}, bias, dtype), draw({1, hidden}) * 0.5, torch::full({1}, bias, dtype)};
}

PolicyPtr policy_of_modules(const std::vector<AtpModule>& modules, const AtpSettings& settings, double temperature) {
  const auto weights = std::make_shared<AtpWeights>();
  *weights = {.file = "modules", .settings = settings, .modules = modules};
  return make_atp({.weights = weights, .temperature = temperature});
}

// Takes away the given ordinals of each picture's tokens before layers.
class FixedMasks final : public PruningPolicy {
 public:
  explicit FixedMasks(std::map<int, std::vector<int64_t>> gone) : gone_(std::move(gone)) {}
  std::string spec() const override { return "fixed"; }
  std::vector<Step> steps(const ModelFacts&, const PromptLayout&) const override {
    std::vector<Step> steps;
    for (const auto& [layer, gone] : gone_)
      steps.push_back(
          {.at = {Site::kBeforeLayer, layer},
           .soft_mask = [ordinals = gone](const TokenLayout& layout, std::span<const at::Tensor>) {
             return torch::ones({layout.num_image_tokens()}, torch::kDouble).index_fill(0, int64_tensor(ordinals), 0.0);
           }});
    return steps;
  }

 private:
  std::map<int, std::vector<int64_t>> gone_;
};

TEST(MaskedPass, AMaskOfZeroIsRemoval) {
  const LlavaConfig config = small_config();
  const LlavaWeights weights = bind_weights(config, random_weight);
  const std::vector<MaskedSequence> sequences = {small_sequence(2, 1), small_sequence(3, 2)};
  const std::map<int, std::vector<int64_t>> gone = {{1, {0, 3, 11}}, {3, {4, 5, 17}}};
  const MaskedPass pass = run_masked(config.decoder, weights.decoder, small_facts(config), FixedMasks(gone), sequences);
  int64_t begin = 0;
  for (const MaskedSequence& s : sequences) {
    const int64_t n = s.embedding.size(0);
    const TokenLayout layout = full_layout(s.prompt, false);
    std::vector<bool> stays(static_cast<size_t>(n), true);
    const auto visible = [&](int layer, int) {
      at::Tensor mask = torch::ones({n, n}, torch::kBool).tril();
      for (const auto& [from, ordinals] : gone)
        for (const int64_t o : ordinals) {
          const int64_t token = layout.image_tokens[o].item<int64_t>();
          stays[static_cast<size_t>(token)] = false;
          if (layer < from) continue;
          mask.select(1, token).fill_(false);
          mask[token][token] = true;
        }
      return mask;
    };
    const at::Tensor expected =
        test::reference_logits(config.decoder, weights.decoder, s.embedding, s.position_id, visible);
    const at::Tensor actual =
        logits(weights.decoder, final_norm(config.decoder, weights.decoder, pass.hidden.slice(0, begin, begin + n)));
    for (int64_t t = 0; t < n; ++t)
      if (stays[static_cast<size_t>(t)])
        test::expect_close(actual[t], expected[t], 1e-6, "row " + std::to_string(t));  // RoPE's angles are float32
    begin += n;
  }
}

// Physically: the same sequence without these rows, through the very same pass. Nothing but the order of sums differs.
TEST(MaskedPass, EqualsTheSequenceWithoutTheTokensToTheLastDigits) {
  const LlavaConfig config = small_config(3);
  const LlavaWeights weights = bind_weights(config, random_weight);
  const MaskedSequence whole = small_sequence(2, 5);
  const std::vector<int64_t> gone = {1, 4, 12, 16};
  const TokenLayout layout = full_layout(whole.prompt, false);
  const MaskedPass masked =
      run_masked(config.decoder, weights.decoder, small_facts(config), FixedMasks({{0, gone}}), {&whole, 1});
  at::Tensor stays = torch::ones({whole.embedding.size(0)}, torch::kBool);
  stays.index_fill_(0, layout.image_tokens.index_select(0, int64_tensor(gone)), false);
  const at::Tensor rows = stays.nonzero().squeeze(1);
  auto text = std::make_shared<PromptLayout>();  // what is left is not asked about
  text->segments.push_back({.begin = 0, .end = rows.size(0), .example = 0});
  finish_prompt_layout(*text, at::kCPU);
  const MaskedSequence rest{text, whole.embedding.index_select(0, rows), rows};
  const MaskedPass removed =
      run_masked(config.decoder, weights.decoder, small_facts(config), FixedMasks({}), {&rest, 1});
  test::expect_close(masked.hidden.index_select(0, rows), removed.hidden, 1e-12);
}

TEST(MaskedPass, SequencesOfABatchAreThoseAlone) {
  const LlavaConfig config = small_config();
  const LlavaWeights weights = bind_weights(config, random_weight);
  const PolicyPtr policy =
      policy_of_modules({random_module(3, 18, 50, at::kDouble, -0.5), random_module(3, 18, 60, at::kDouble, -0.5)},
                        {.layers = {1, 3}, .grid = {3, 3}, .strides = {2}}, 10);
  const std::vector<MaskedSequence> both = {small_sequence(2, 1), small_sequence(3, 2)};
  const MaskedPass pass = run_masked(config.decoder, weights.decoder, small_facts(config), *policy, both);
  int64_t begin = 0;
  for (size_t s = 0; s < 2; ++s) {
    const MaskedPass alone = run_masked(config.decoder, weights.decoder, small_facts(config), *policy, {&both[s], 1});
    const int64_t n = both[s].embedding.size(0);
    test::expect_close(pass.hidden.slice(0, begin, begin + n), alone.hidden, 1e-12);
    test::expect_close(pass.traces[s].presence[1], alone.traces[0].presence[1], 1e-12);
    begin += n;
    // Masks multiply.
    EXPECT_TRUE((pass.traces[s].presence[1] <= pass.traces[s].presence[0]).all().item<bool>());
  }
}

// Modules, embeddings and decoder weights; the answers' loss, L_atp and L_target (above and below its target).
TEST(MaskedPass, GradientsEqualFiniteDifferences) {
  const LlavaConfig config = small_config(3);
  std::vector<std::string> names;
  std::vector<at::Tensor> inputs;
  for (const NamedShape& n : weight_names(describe(config)))
    if (n.name.starts_with("decoder.layers.1.") || n.name.starts_with("decoder.layers.0.self_attn.k")) {
      names.push_back(n.name);
      inputs.push_back(random_weight(n.name, n.shape));
    }
  const size_t first_module = inputs.size();
  for (const AtpModule& m : {random_module(2, 18, 70, at::kDouble, -0.7), random_module(2, 18, 80, at::kDouble, -0.7)})
    for (const at::Tensor& t :
         {m.mix_weight, m.mix_bias, m.redundancy_weight, m.redundancy_bias, m.spatial_weight, m.spatial_bias})
      inputs.push_back(t);
  const MaskedSequence base = small_sequence(2, 9);
  inputs.push_back(base.embedding);
  for (const double temperature : {3.0, 10.0})
    test::expect_gradients_match(
        [&](const std::vector<at::Tensor>& in) {
          const LlavaWeights weights = bind_weights(config, [&](const std::string& name, at::IntArrayRef shape) {
            const auto at = static_cast<size_t>(std::ranges::find(names, name) - names.begin());
            return at < names.size() ? in[at] : random_weight(name, shape);
          });
          std::vector<AtpModule> modules;
          for (size_t i = first_module; i + 6 < in.size(); i += 6)
            modules.push_back({in[i], in[i + 1], in[i + 2], in[i + 3], in[i + 4], in[i + 5]});
          const PolicyPtr policy =
              policy_of_modules(modules, {.layers = {1, 2}, .grid = {3, 3}, .strides = {2}}, temperature);
          MaskedSequence sequence = base;
          sequence.embedding = in.back();
          const MaskedPass pass =
              run_masked(config.decoder, weights.decoder, small_facts(config), *policy, {&sequence, 1});
          const at::Tensor said = logits(weights.decoder, final_norm(config.decoder, weights.decoder, pass.hidden));
          const AtpCounts counts = soft_counts({&sequence, 1}, pass.traces);
          return std::vector<at::Tensor>{at::cross_entropy_loss(said.slice(0, -3, -1), int64_tensor({4, 7})),
                                         depth_loss(counts), target_loss(counts, 3, 0.2),
                                         target_loss(counts, 3, 0.95, true)};
        },
        inputs, 2e-5);
}

// ---- W4: losses ----

TEST(AtpLoss, IsThatOfW4) {
  const auto counts_of = [](double a, double b, double c) {
    return AtpCounts{
        torch::full({1}, 576.0, torch::kDouble), torch::tensor({a, b, c}, torch::kDouble).view({1, 3}), {4, 14, 24}};
  };
  const struct {
    double a, b, c, mean, atp, target, total;
  } cases[] = {{106, 81, 19, 135.1875, 3.496528, 8.8125, 3.437326}, {143, 109, 21, 156, 4.517361, 12, 4.125868}};
  for (const auto& expected : cases) {
    const AtpCounts counts = counts_of(expected.a, expected.b, expected.c);
    const double atp = depth_loss(counts).item<double>(), target = target_loss(counts, 32, 0.25).item<double>();
    EXPECT_NEAR(mean_tokens(counts, 32).item<double>(), expected.mean, 1e-9);
    EXPECT_NEAR(atp, expected.atp, 1e-6);
    EXPECT_NEAR(target, expected.target, 1e-9);
    EXPECT_NEAR(1.5 + 0.05 * atp + 0.2 * target, expected.total, 1e-6);
    EXPECT_NEAR(target_loss(counts, 32, 0.25, true).item<double>(), expected.target / 576, 1e-9);
  }
  EXPECT_EQ(depth_loss(counts_of(576, 576, 576)).item<double>(), 42);
  EXPECT_EQ(mean_tokens(counts_of(576, 576, 576), 32).item<double>(), 576);
}

// ---- against the runtime ----

const LoadedModel& tiny_llava() {
  static const LoadedModel model = [] {
    EngineOptions options;
    options.dtype = ComputeDtype::kFloat32;
    return load_model(test::golden_folder() / "llava15", options);
  }();
  return model;
}

// A real checkpoint, its tower, template and tokenizer: a mask that is steep enough to be 0 or 1 keeps what the runtime
// keeps with the same modules at every layer, and the next token's logits are the same.
TEST(MaskedPass, SteepMasksEqualTheRuntimeThatRemoves) {
  const torch::NoGradGuard no_gradients;
  const LoadedModel& model = tiny_llava();
  const auto examples = synthetic_examples(std::vector<std::string>{"bind", "single"}, {}, 4);
  int64_t removed = 0, stayed = 0;
  for (int64_t item = 0; item < 6; ++item) {
    const auto strategy = static_cast<AtpStrategy>(item % 3);
    const auto scores = static_cast<AtpScores>(item / 2);
    const AtpHeadInput input = item % 2 ? AtpHeadInput::kMean : AtpHeadInput::kScatter;
    const AtpSettings settings{.layers = {1, 4, 6},
                               .grid = {4, 4},
                               .strides = {2, 4},
                               .head_input = input,
                               .strategy = strategy,
                               .scores = scores};
    std::vector<AtpModule> modules;
    for (uint64_t m = 0; m < 3; ++m)
      modules.push_back(random_module(5, input == AtpHeadInput::kMean ? 2 : 32, 100 * m + static_cast<uint64_t>(item),
                                      at::kFloat, strategy == AtpStrategy::kSpatial ? -2.0 : -1.0));
    const Chat chat = examples->draw(item, false);
    const AtpSequence sequence = atp_sequence(model, chat);
    const MaskedPass pass = run_masked(model.config.decoder, model.weights.decoder, model.facts,
                                       *policy_of_modules(modules, settings, 1e9), {&sequence.masked, 1});
    Request request;
    Chat asked = chat;
    asked.messages.pop_back();
    request.prompt = asked;
    request.custom = policy_of_modules(modules, settings, 10);
    request.options.max_new_tokens = 0;
    LogitsWatcher watcher;
    const Result result = generate(model, request, {}, {.watcher = &watcher});
    const at::Tensor tokens = full_layout(sequence.masked.prompt, false).image_tokens;
    ASSERT_EQ(result.points.size(), 3U);
    for (size_t p = 0; p < 3; ++p) {
      const at::Tensor& presence = pass.traces[0].presence[p];
      std::vector<int64_t> kept;
      for (int64_t i = 0; i < presence.size(0); ++i) {
        const auto value = presence[i].item<float>();
        EXPECT_TRUE(value == 0 || value == 1) << value;
        if (value == 1) kept.push_back(tokens[i].item<int64_t>());
      }
      EXPECT_EQ(kept, result.points[p].kept) << "item " << item << " point " << p;
      stayed += std::ssize(kept);
      removed += presence.size(0) - std::ssize(kept);
    }
    const at::Tensor row = pass.hidden.slice(0, sequence.answer - 1, sequence.answer);
    test::expect_close(logits(model.weights.decoder, final_norm(model.config.decoder, model.weights.decoder, row))[0],
                       watcher.logits, 1e-4, "item " + std::to_string(item));
  }
  EXPECT_GT(stayed, 50);  // both happen
  EXPECT_GT(removed, 50);
}

}  // namespace
}  // namespace espalier
