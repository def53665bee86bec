// SPDX-License-Identifier: Apache-2.0
// ATP-LLaVA: "ATP-LLaVA: Adaptive Token Pruning for Large Vision Language Models" (arXiv 2412.00447), as
// docs/specs/atp_llava.md reads it; B1 … B22 are that page's readings.
//   l               layer: the paper's "after layer l", 1-based, is before 0-based layer l
//   S_self, S_cross self, cross: probe of layer l-1, heads averaged, rows: the tokens of the crop, the text behind it
//   S_red           redundancy
//   S_spa           spatial
//   theta           thresholds
//   orig(i)         place in the raster of the whole crop
//   D, M            key weight, product
// Every crop of every image is a block of its own, with thresholds of its own (B19). There is no published code; where
// the paper is silent the page's defaults hold. Pinned tokens and floors stay beside what the thresholds keep.
#include "espalier/policies/atp.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/stack.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <memory>
#include <string>

#include "espalier/error.h"
#include "pruning/atp_modules.h"
#include "pruning/built_in.h"
#include "pruning/prompt_text.h"
#include "pruning/stages.h"

namespace espalier {

namespace {

using O = AtpOptions;

constexpr std::array kLayersOf32 = {4, 14, 24};

void check(const O& o) {
  const auto fail = [](const std::string& what) { throw Error("atp: " + what); };
  if (o.weights) {
    if (!o.theta_r.empty() || !o.theta_s.empty()) fail("give weights or theta_r and theta_s, not both");
  } else {
    if (o.theta_r.empty() || o.theta_s.empty()) fail("weights, or theta_r and theta_s, are needed");
    const size_t modules = o.settings.layers.empty() ? kLayersOf32.size() : o.settings.layers.size();
    for (const auto* thetas : {&o.theta_r, &o.theta_s}) {
      const std::string name = thetas == &o.theta_r ? "theta_r" : "theta_s";
      if (thetas->size() != 1 && thetas->size() != modules)
        fail(name + " has " + std::to_string(thetas->size()) + " values for " + std::to_string(modules) + " layers");
      for (const double theta : *thetas)
        if (!(theta >= 0 && theta <= 1)) fail(name + " is not from 0 to 1");
    }
  }
  if (o.settings.strides.empty()) fail("strides are needed");
  for (const int64_t stride : o.settings.strides)
    if (stride < 1) fail("strides: " + std::to_string(stride) + " is below 1");
  if (!std::isfinite(o.settings.lambda_sample)) fail("lambda_sample is not a finite number");
  if (o.settings.min_keep < 0) fail("min_keep is below 0");
  if (!(o.temperature > 0)) fail("the temperature is not above 0");
}

void check_images(const O& o, const PromptLayout& prompt) {
  if (!o.weights || o.settings.head_input == AtpHeadInput::kMean) return;
  for (size_t i = 0; i < prompt.images.size(); ++i) {
    const GridSize grid = prompt.images[i].grid;
    if (grid == o.settings.grid) continue;
    const auto text = [](GridSize g) { return std::to_string(g.rows) + " x " + std::to_string(g.cols); };
    throw Error("atp: " + o.weights->file + ": its modules are for crops of " + text(o.settings.grid) +
                " tokens, but image " + std::to_string(i) + " has " + text(grid));
  }
}

// One crop as a step finds it.
struct Block {
  int image = 0;
  at::Tensor tokens;  // int64 ordinals of its patches
};

std::vector<Block> blocks_of(const TokenLayout& layout) {
  const std::vector<CropFacts> crops = crops_of(*layout.prompt);
  const Pools pools = pools_of(layout, Budget::Pool::kCrop);
  std::vector<Block> blocks;
  for (size_t i = 0; i < crops.size(); ++i)
    if (pools.size(i) > 0)
      blocks.push_back({crops[i].image, pools.tokens.slice(0, pools.begin[i], pools.begin[i + 1])});
  return blocks;
}

// What the modules of one request share.
struct Shared {
  std::map<std::pair<int64_t, int64_t>, at::Tensor> spatial;  // S_spa by grid
  std::vector<AtpModule> modules;                             // on the model's device
  at::Tensor product;  // in training: masks so far, [m]; undefined before the first module
};

Shared shared_of(const O& o, const PromptLayout& prompt) {
  Shared shared;
  const at::Device device = prompt.kind.device();
  for (const ImageShape& image : prompt.images) {
    at::Tensor& spatial = shared.spatial[{image.grid.rows, image.grid.cols}];
    if (!spatial.defined())
      spatial = atp_spatial_score(image.grid, o.settings.strides, o.settings.lambda_sample).to(device);
  }
  if (o.weights)
    for (const AtpModule& m : o.weights->modules)
      shared.modules.push_back({m.mix_weight.to(device), m.mix_bias.to(device), m.redundancy_weight.to(device),
                                m.redundancy_bias.to(device), m.spatial_weight.to(device), m.spatial_bias.to(device)});
  return shared;
}

// Two groups a crop: its own tokens, and the text behind it, each looking at the crop.
std::vector<Signal> needs(int layer, const TokenLayout& layout) {
  AttentionProbe probe{.layer = layer - 1, .rows = AttentionProbe::Rows::kGiven};
  const auto text = text_behind_each_image(*layout.prompt);
  for (const Block& block : blocks_of(layout)) {
    const at::Tensor own = layout.image_tokens.index_select(0, block.tokens);
    probe.groups.push_back({.rows = own, .columns = own});
    probe.groups.push_back({.rows = text_tokens_at(layout, text[static_cast<size_t>(block.image)]), .columns = own});
  }
  if (probe.groups.empty()) return {};  // an earlier module of a request without floors took everything
  return {probe};
}

// What a module says of one crop.
struct Judged {
  at::Tensor tokens;  // int64 [m of the crop] ordinals
  at::Tensor redundancy, spatial;
  AtpThresholds thresholds;
};

std::vector<Judged> judge(const O& o, size_t module, const TokenLayout& layout, const at::Tensor& received,
                          const Shared& shared) {
  const PromptLayout& prompt = *layout.prompt;
  const at::Tensor source = layout.source_index.index_select(0, layout.image_tokens);
  if (source.numel() > 0 && source.min().item<int64_t>() < 0)
    throw Error("atp: a merged token without a place of its own has no place in the grid");
  std::vector<Judged> crops;
  int64_t at_signal = 0;
  for (const Block& block : blocks_of(layout)) {
    const int64_t m = block.tokens.size(0);
    at::Tensor self = received.slice(0, at_signal, at_signal + m);
    at::Tensor cross = received.slice(0, at_signal + m, at_signal + 2 * m);
    if (o.settings.scores == AtpScores::kSelf) cross = self;
    if (o.settings.scores == AtpScores::kCross) self = cross;
    at_signal += 2 * m;
    const GridSize grid = prompt.images[static_cast<size_t>(block.image)].grid;
    Judged& crop = crops.emplace_back();
    crop.tokens = block.tokens;
    const at::Tensor tokens = source.index_select(0, crop.tokens);
    const at::Tensor places =
        prompt.grid_row.index_select(0, tokens) * grid.cols + prompt.grid_col.index_select(0, tokens);
    at::Tensor present, in_range;  // in training; B22
    if (shared.product.defined()) {
      present = shared.product.index_select(0, crop.tokens);
      in_range = present > 0.5;
    }
    crop.redundancy = atp_redundancy_score(self, cross, o.settings.norm, in_range);
    crop.spatial = shared.spatial.at({grid.rows, grid.cols}).to(received.scalar_type()).index_select(0, places);
    if (o.weights) {
      crop.thresholds = atp_thresholds(shared.modules[module], o.settings.activation,
                                       atp_head_input(self, cross, places, grid, o.settings.head_input, present));
    } else {
      const auto constant = [&](const std::vector<double>& thetas) {
        return at::full({}, thetas.size() == 1 ? thetas[0] : thetas[module], received.options());
      };
      crop.thresholds = {constant(o.theta_r), constant(o.theta_s)};
    }
  }
  return crops;
}

Verdict decide(const O& o, size_t module, const TokenLayout& layout, std::span<const at::Tensor> signals,
               const Shared& shared) {
  if (signals.empty()) return {.kept = layout.image_tokens.slice(0, 0, 0)};
  at::Tensor passes = at::full({layout.num_image_tokens()}, false, layout.pinned.options());
  at::Tensor scores = at::full({layout.num_image_tokens()}, 0.0, signals[0].options());
  std::vector<at::Tensor> theta_r, theta_s;
  for (const Judged& crop : judge(o, module, layout, signals[0], shared)) {
    passes.index_copy_(
        0, crop.tokens,
        atp_hard_keep(crop.redundancy, crop.spatial, crop.thresholds, o.settings.min_keep, o.settings.strategy));
    scores.index_copy_(0, crop.tokens, crop.redundancy);
    theta_r.push_back(crop.thresholds.redundancy);
    theta_s.push_back(crop.thresholds.spatial);
  }
  return {
      .scores = scores, .notes = {{"theta_r", at::stack(theta_r)}, {"theta_s", at::stack(theta_s)}}, .always = passes};
}

at::Tensor soft_mask(const O& o, size_t module, const TokenLayout& layout, std::span<const at::Tensor> signals,
                     Shared& shared) {
  std::vector<at::Tensor> masks, tokens;
  for (const Judged& crop : judge(o, module, layout, signals[0], shared)) {
    masks.push_back(atp_soft_mask(crop.redundancy, crop.spatial, crop.thresholds, o.temperature, o.settings.strategy));
    tokens.push_back(crop.tokens);
  }
  // Back from crop by crop to the order of the sequence.
  const at::Tensor mask = at::cat(masks).index_select(0, at::cat(tokens).argsort());
  shared.product = shared.product.defined() ? shared.product * mask.detach() : mask.detach();
  return mask;
}

std::vector<Step> steps(const O& o, const ModelFacts& model, const PromptLayout& prompt) {
  const std::vector<int> layers =
      o.settings.layers.empty() ? scaled_layers(kLayersOf32, model.num_layers) : o.settings.layers;
  check_stage_layers("atp", layers, 1, model.num_layers);
  check_images(o, prompt);
  if (!prompt.images.empty() && text_behind_last_image(prompt).empty())
    throw Error("atp: no text stands after the last image to rate its tokens");
  const auto shared = std::make_shared<Shared>(shared_of(o, prompt));
  std::vector<Step> steps;
  for (size_t module = 0; module < layers.size(); ++module) {
    const int layer = layers[module];
    if (layer == model.num_layers) continue;
    steps.push_back(
        {.at = {Site::kBeforeLayer, layer},
         .budget = {.pool = Budget::Pool::kImage, .is_adaptive = true},
         .needs = [layer](const TokenLayout& layout) { return needs(layer, layout); },
         .decide = [=](const TokenLayout& layout,
                       std::span<const at::Tensor> signals) { return decide(o, module, layout, signals, *shared); },
         .soft_mask =
             [=](const TokenLayout& layout, std::span<const at::Tensor> signals) {
               return soft_mask(o, module, layout, signals, *shared);
             }});
  }
  return steps;
}

// With weights the file brings the settings, and spec() leaves out what it says.
O with_settings_of_weights(O o) {
  const std::optional<AtpStrategy> strategy = o.strategy;
  if (o.weights) o.settings = o.weights->settings;
  if (strategy) o.settings.strategy = *strategy;
  o.strategy = o.settings.strategy;
  return o;
}

O defaults(const O& o) {
  O usual;
  usual.weights = {};
  if (o.weights) usual.settings = o.weights->settings;
  usual.strategy = usual.settings.strategy;
  return usual;
}

// An option of the settings. Beside `weights` it may repeat what the file says, not change it.
template <typename V>
Option<O> setting(std::string_view name, V AtpSettings::*member, std::string_view meaning, Words<V> words = {}) {
  const auto access = [member](auto& o) -> auto& {
    return o.settings.*member;
  };
  Option<O> option = [&] {
    if constexpr (std::is_enum_v<V>)
      return Option<O>(name, access, words, meaning);
    else
      return Option<O>(name, access, meaning);
  }();
  option.check = {};
  option.read = [name, member, read = option.read](O& o, std::string_view text, const ReadContext& context) {
    const std::string wrong = read(o, text, context);
    if (wrong.empty() && o.weights && o.settings.*member != o.weights->settings.*member)
      return "differs: " + o.weights->file + " was trained with another value";
    return wrong;
  };
  return option;
}

Option<O> strategy() {
  Option<O> option(
      "strategy", &O::strategy,
      {{"both", AtpStrategy::kBoth}, {"redundant", AtpStrategy::kRedundant}, {"spatial", AtpStrategy::kSpatial}},
      "which score may keep a token: both, redundant, spatial");
  option.write = [write = option.write](const O& o) { return write(with_settings_of_weights(o)); };
  return option;
}

const Method<O>& method() {
  static const Method<O> method = {
      .name = "atp",
      .options = {{"weights", "trained modules, safetensors with a .json of the same name beside it",
                   [](O& o, std::string_view file, const ReadContext& context) {
                     o.weights = std::make_shared<const AtpWeights>(context.get_files().atp_weights(std::string(file)));
                     o.settings = o.weights->settings;
                     return std::string();
                   },
                   [](const O& o) { return o.weights ? o.weights->file : std::string(); }},
                  {"theta_r", &O::theta_r,
                   "without weights: threshold of the redundancy score, one value or one for each layer"},
                  {"theta_s", &O::theta_s, "without weights: threshold of the spatial score, the same"},
                  setting("layers", &AtpSettings::layers,
                          "modules act before these layers; 4:14:24 of 32, in proportion to the depth"),
                  setting("strides", &AtpSettings::strides, "of the regular samplings of the grid"),
                  setting("lambda_sample", &AtpSettings::lambda_sample,
                          "a token that stride s samples scores 1 - lambda_sample / s^2"),
                  setting("norm", &AtpSettings::norm,
                          "of the redundancy score over a crop: minmax, none, max, sigmoid, rank",
                          {{"minmax", AtpNorm::kMinmax},
                           {"none", AtpNorm::kNone},
                           {"max", AtpNorm::kMax},
                           {"sigmoid", AtpNorm::kSigmoid},
                           {"rank", AtpNorm::kRank}}),
                  setting("min_keep", &AtpSettings::min_keep, "tokens that stay of each crop"),
                  setting("scores", &AtpSettings::scores,
                          "attention looked at: both, self (from the crop's own tokens), cross (from text)",
                          {{"both", AtpScores::kBoth}, {"self", AtpScores::kSelf}, {"cross", AtpScores::kCross}}),
                  strategy()},
      .steps = steps,
      .check = check,
      .defaults = defaults};
  return method;
}

}  // namespace

PolicyPtr make_atp(const AtpOptions& options) {
  return make(method(), with_settings_of_weights(options));
}

PolicyRow atp_row() {
  PolicyRow made = row(
      method(),
      {.paper = "arXiv 2412.00447",
       .summary = "modules between layers set thresholds for each crop; the number kept adapts",
       .sites = {Site::kBeforeLayer},
       .needs = "attention of each crop's own rows and of text after it in a few layers",
       .refusal = needs_layers<4>,
       .examples = {{"atp:theta_r=0.3,theta_s=0.9"}, {"atp:theta_r=0.6:0.4:0.3,theta_s=1,norm=rank,layers=2:3:7"}}});
  made.make = [](const PolicySpec& spec, const PolicyFiles& files) {
    return make_atp(read_options(spec.name, spec.options, method().options, &files));
  };
  return made;
}

}  // namespace espalier
