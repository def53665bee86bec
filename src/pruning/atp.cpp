// SPDX-License-Identifier: Apache-2.0
// ATP-LLaVA: "ATP-LLaVA: Adaptive Token Pruning for Large Vision Language Models" (arXiv 2412.00447), as
// docs/specs/atp_llava.md reads it; B1 … B22 are that page's readings.
// Symbols: l -> layer (the paper's "after layer l", 1-based, is before 0-based layer l), S_self, S_cross -> self, cross
// (probe of layer l-1, heads averaged, rows: the tokens of the crop, the text behind it), S_red -> redundancy, S_spa ->
// spatial, theta -> thresholds, orig(i) -> place in the raster of the whole crop, D -> key weight, M -> product.
// Every crop of every image is a block of its own, with thresholds of its own (B19). There is no published code; where
// the paper is silent the page's defaults hold. Pinned tokens and floors stay beside what the thresholds keep.
#include "espalier/policies/atp.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/bincount.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/stack.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <string>

#include "espalier/error.h"
#include "pruning/atp_modules.h"
#include "pruning/built_in.h"
#include "pruning/crop_pools.h"
#include "pruning/prompt_text.h"
#include "pruning/selection.h"
#include "pruning/stages.h"

namespace espalier {

namespace {

constexpr ValueNames<AtpNorm, 5> kNorms = {{{"minmax", AtpNorm::kMinmax},
                                            {"none", AtpNorm::kNone},
                                            {"max", AtpNorm::kMax},
                                            {"sigmoid", AtpNorm::kSigmoid},
                                            {"rank", AtpNorm::kRank}}};
constexpr ValueNames<AtpStrategy, 3> kStrategies = {
    {{"both", AtpStrategy::kBoth}, {"redundant", AtpStrategy::kRedundant}, {"spatial", AtpStrategy::kSpatial}}};
constexpr ValueNames<AtpScores, 3> kScores = {
    {{"both", AtpScores::kBoth}, {"self", AtpScores::kSelf}, {"cross", AtpScores::kCross}}};
constexpr std::array kLayersOf32 = {4, 14, 24};

// One crop as a point finds it.
struct Block {
  int image = 0;
  std::vector<int64_t> ordinals;  // of its patches, into image_tokens
};

std::vector<Block> blocks_of(const TokenLayout& layout) {
  const auto pools = crop_pools(*layout.prompt);
  auto tokens = crop_tokens(layout, pools, /*row_breaks_compete=*/false);
  std::vector<Block> blocks;
  for (size_t i = 0; i < pools.size(); ++i)
    if (!tokens[i].ordinals.empty()) blocks.push_back({pools[i].image, std::move(tokens[i].ordinals)});
  return blocks;
}

struct AtpState final : PruningPolicy::State {
  std::vector<int> layers;
  std::map<std::pair<int64_t, int64_t>, at::Tensor> spatial;  // S_spa by grid
  std::vector<AtpModule> modules;                             // on the model's device
  at::Tensor product;  // in training: masks so far, [m]; undefined before the first module

  size_t module_at(int layer) const {
    return static_cast<size_t>(std::find(layers.begin(), layers.end(), layer) - layers.begin());
  }
};

class Atp final : public PlannedPolicy {
 public:
  explicit Atp(const AtpOptions& options) : PlannedPolicy("atp", options.common, false), options_(options) {
    if (options.weights)
      settings_ = options.weights->settings;
    else
      settings_ = options.settings;
    if (options.strategy) settings_.strategy = *options.strategy;
    check();
  }

  std::string spec() const override;

  std::vector<PlannedPoint> plan(const ModelFacts& model, const PromptLayout& prompt) const override {
    const std::vector<int> layers = layers_of(model);
    check_stage_layers("atp", layers, 1, model.num_layers);
    check_images(prompt);
    if (!prompt.images.empty() && text_behind_last_image(prompt).empty())
      throw Error("atp: no text stands behind the last image to rate its tokens");
    std::vector<PlannedPoint> points;
    for (const int layer : layers) points.push_back({{Site::kBeforeLayer, layer}, {}, {}, layer < model.num_layers});
    return points;
  }

  std::unique_ptr<State> begin_sequence(const ModelFacts& model, const PromptLayout& prompt) const override;
  std::vector<Signal> needs(const ActPoint& point, const TokenLayout& layout, const State* state) const override;
  Verdict decide(const ActPoint& point, const TokenLayout& layout, std::span<const at::Tensor> signals,
                 State* state) const override;
  at::Tensor soft_mask(const ActPoint& point, const TokenLayout& layout, std::span<const at::Tensor> signals,
                       State* state) const override;

 private:
  void check() const;
  void check_images(const PromptLayout& prompt) const;
  std::vector<int> layers_of(const ModelFacts& model) const {
    return settings_.layers.empty() ? scaled_layers(kLayersOf32, model.num_layers) : settings_.layers;
  }

  // What a module says of one crop.
  struct Judged {
    at::Tensor ordinals;  // int64 [m of the crop]
    at::Tensor redundancy, spatial;
    AtpThresholds thresholds;
  };
  std::vector<Judged> judge(const ActPoint& point, const TokenLayout& layout, const at::Tensor& received,
                            const AtpState& state) const;

  AtpOptions options_;
  AtpSettings settings_;
};

void Atp::check() const {
  const auto fail = [](const std::string& what) { throw Error("atp: " + what); };
  if (options_.weights) {
    if (!options_.theta_r.empty() || !options_.theta_s.empty()) fail("give weights or theta_r and theta_s, not both");
  } else {
    if (options_.theta_r.empty() || options_.theta_s.empty()) fail("weights, or theta_r and theta_s, are needed");
    const size_t modules = settings_.layers.empty() ? kLayersOf32.size() : settings_.layers.size();
    for (const auto* thetas : {&options_.theta_r, &options_.theta_s}) {
      const std::string name = thetas == &options_.theta_r ? "theta_r" : "theta_s";
      if (thetas->size() != 1 && thetas->size() != modules)
        fail(name + " has " + std::to_string(thetas->size()) + " values for " + std::to_string(modules) + " layers");
      for (const double theta : *thetas)
        if (!(theta >= 0 && theta <= 1)) fail(name + " is not from 0 to 1");
    }
  }
  if (settings_.strides.empty()) fail("strides are needed");
  for (const int64_t stride : settings_.strides)
    if (stride < 1) fail("strides: " + std::to_string(stride) + " is below 1");
  if (!std::isfinite(settings_.lambda_sample)) fail("lambda_sample is not a finite number");
  if (settings_.min_keep < 0) fail("min_keep is below 0");
  if (!(options_.temperature > 0)) fail("the temperature is not above 0");
}

void Atp::check_images(const PromptLayout& prompt) const {
  if (!options_.weights || settings_.head_input == AtpHeadInput::kMean) return;
  for (size_t i = 0; i < prompt.images.size(); ++i) {
    const GridSize grid = prompt.images[i].grid;
    if (grid == settings_.grid) continue;
    const auto text = [](GridSize g) { return std::to_string(g.rows) + " x " + std::to_string(g.cols); };
    throw Error("atp: " + options_.weights->file + ": its modules are for crops of " + text(settings_.grid) +
                " tokens, but image " + std::to_string(i) + " has " + text(grid));
  }
}

std::string Atp::spec() const {
  const AtpOptions defaults;
  SpecWriter writer("atp");
  if (options_.weights) {
    writer.add("weights", options_.weights->file);
  } else {
    std::string strides;
    for (const int64_t stride : settings_.strides) strides += (strides.empty() ? "" : ":") + std::to_string(stride);
    writer.add("theta_r", options_.theta_r).add("theta_s", options_.theta_s);
    write_layers(writer, settings_.layers);
    if (settings_.strides != defaults.settings.strides) writer.add("strides", strides);
    writer.add("lambda_sample", settings_.lambda_sample, defaults.settings.lambda_sample)
        .choice("norm", settings_.norm, defaults.settings.norm, kNorms)
        .add("min_keep", settings_.min_keep, defaults.settings.min_keep)
        .choice("scores", settings_.scores, defaults.settings.scores, kScores);
  }
  const AtpSettings& usual = options_.weights ? options_.weights->settings : defaults.settings;
  return writer.choice("strategy", settings_.strategy, usual.strategy, kStrategies).common(common()).text();
}

std::unique_ptr<PruningPolicy::State> Atp::begin_sequence(const ModelFacts& model, const PromptLayout& prompt) const {
  auto state = std::make_unique<AtpState>();
  const at::Device device = prompt.kind.device();
  state->layers = layers_of(model);
  for (const ImageShape& image : prompt.images) {
    at::Tensor& spatial = state->spatial[{image.grid.rows, image.grid.cols}];
    if (!spatial.defined())
      spatial = atp_spatial_score(image.grid, settings_.strides, settings_.lambda_sample).to(device);
  }
  if (options_.weights)
    for (const AtpModule& m : options_.weights->modules)
      state->modules.push_back({m.mix_weight.to(device), m.mix_bias.to(device), m.redundancy_weight.to(device),
                                m.redundancy_bias.to(device), m.spatial_weight.to(device), m.spatial_bias.to(device)});
  return state;
}

// Two groups a crop: its own tokens, and the text behind it, each looking at the crop.
std::vector<Signal> Atp::needs(const ActPoint& point, const TokenLayout& layout, const State*) const {
  AttentionProbe probe{.layer = point.layer - 1, .rows = AttentionProbe::Rows::kGiven};
  const auto text = text_behind_each_image(*layout.prompt);
  for (const Block& block : blocks_of(layout)) {
    const at::Tensor own =
        layout.image_tokens.index_select(0, int64_tensor(block.ordinals).to(layout.image_tokens.device()));
    probe.groups.push_back({.rows = own, .columns = own});
    probe.groups.push_back({.rows = text_tokens_at(layout, text[static_cast<size_t>(block.image)]), .columns = own});
  }
  if (probe.groups.empty()) return {};  // an earlier module of a request without floors took everything
  return {probe};
}

std::vector<Atp::Judged> Atp::judge(const ActPoint& point, const TokenLayout& layout, const at::Tensor& received,
                                    const AtpState& state) const {
  const PromptLayout& prompt = *layout.prompt;
  const size_t module = state.module_at(point.layer);
  const at::Tensor source = layout.source_index.index_select(0, layout.image_tokens);
  if (source.numel() > 0 && source.min().item<int64_t>() < 0)
    throw Error("atp: a merged token without a place of its own has no place in the grid");
  std::vector<Judged> crops;
  int64_t at_signal = 0;
  for (const Block& block : blocks_of(layout)) {
    const auto m = static_cast<int64_t>(block.ordinals.size());
    at::Tensor self = received.slice(0, at_signal, at_signal + m);
    at::Tensor cross = received.slice(0, at_signal + m, at_signal + 2 * m);
    if (settings_.scores == AtpScores::kSelf) cross = self;
    if (settings_.scores == AtpScores::kCross) self = cross;
    at_signal += 2 * m;
    const GridSize grid = prompt.images[static_cast<size_t>(block.image)].grid;
    Judged& crop = crops.emplace_back();
    crop.ordinals = int64_tensor(block.ordinals).to(received.device());
    const at::Tensor tokens = source.index_select(0, crop.ordinals);
    const at::Tensor places =
        prompt.grid_row.index_select(0, tokens) * grid.cols + prompt.grid_col.index_select(0, tokens);
    at::Tensor present, in_range;  // in training; B22
    if (state.product.defined()) {
      present = state.product.index_select(0, crop.ordinals);
      in_range = present > 0.5;
    }
    crop.redundancy = atp_redundancy_score(self, cross, settings_.norm, in_range);
    crop.spatial = state.spatial.at({grid.rows, grid.cols}).to(received.scalar_type()).index_select(0, places);
    if (options_.weights) {
      crop.thresholds = atp_thresholds(state.modules[module], settings_.activation,
                                       atp_head_input(self, cross, places, grid, settings_.head_input, present));
    } else {
      const auto constant = [&](const std::vector<double>& thetas) {
        return at::full({}, thetas.size() == 1 ? thetas[0] : thetas[module], received.options());
      };
      crop.thresholds = {constant(options_.theta_r), constant(options_.theta_s)};
    }
  }
  return crops;
}

Verdict Atp::decide(const ActPoint& point, const TokenLayout& layout, std::span<const at::Tensor> signals,
                    State* state) const {
  if (signals.empty()) return {.kept = int64_tensor({}).to(layout.image_tokens.device())};
  const std::vector<Judged> crops = judge(point, layout, signals[0], dynamic_cast<const AtpState&>(*state));
  const at::Tensor pinned = layout.pinned.index_select(0, layout.image_tokens);
  at::Tensor keep = pinned.clone(), scores = at::full({pinned.size(0)}, 0.0, signals[0].options());
  std::vector<at::Tensor> theta_r, theta_s;
  for (const Judged& crop : crops) {
    keep.index_copy_(
        0, crop.ordinals,
        atp_hard_keep(crop.redundancy, crop.spatial, crop.thresholds, settings_.min_keep, settings_.strategy) |
            pinned.index_select(0, crop.ordinals));
    scores.index_copy_(0, crop.ordinals, crop.redundancy);
    theta_r.push_back(crop.thresholds.redundancy);
    theta_s.push_back(crop.thresholds.spatial);
  }
  Verdict verdict{.kept = {}, .scores = scores};
  verdict.notes = {{"theta_r", at::stack(theta_r)}, {"theta_s", at::stack(theta_s)}};
  if (common().min_per_image == 0) {
    verdict.kept = indices_of(keep);  // how many: the data decide
    return verdict;
  }
  const std::vector<int64_t> sizes = tokens_per_image(layout, false);
  const at::Tensor image = layout.image.index_select(0, layout.image_tokens);
  const at::Tensor passed =
      at::bincount(image.masked_select(keep), {}, static_cast<int64_t>(sizes.size())).cpu().contiguous();
  std::vector<int64_t> wanted;
  for (size_t i = 0; i < sizes.size(); ++i)
    wanted.push_back(std::max(passed.const_data_ptr<int64_t>()[i], common().min_per_image));
  verdict.kept = keep_best(scores, keep, blocks_within(sizes, wanted));
  return verdict;
}

at::Tensor Atp::soft_mask(const ActPoint& point, const TokenLayout& layout, std::span<const at::Tensor> signals,
                          State* state) const {
  auto& mine = dynamic_cast<AtpState&>(*state);
  std::vector<at::Tensor> masks, ordinals;
  for (const Judged& crop : judge(point, layout, signals[0], mine)) {
    masks.push_back(
        atp_soft_mask(crop.redundancy, crop.spatial, crop.thresholds, options_.temperature, settings_.strategy));
    ordinals.push_back(crop.ordinals);
  }
  // Back from crop by crop to the order of the sequence.
  const at::Tensor mask = at::cat(masks).index_select(0, at::cat(ordinals).argsort());
  mine.product = mine.product.defined() ? mine.product * mask.detach() : mask.detach();
  return mask;
}

// An option beside `weights` may repeat what the file says, not change it.
template <typename T>
void set_or_agree(const OptionReader& reader, const AtpWeights* weights, std::string_view name, T& setting,
                  const T& wanted) {
  if (!reader.text(name)) return;
  if (weights && setting != wanted)
    throw Error("atp: " + std::string(name) + "=" + std::string(*reader.text(name)) + ", but " + weights->file +
                " was trained with another value");
  setting = wanted;
}

}  // namespace

PolicyPtr make_atp(const AtpOptions& options) {
  return std::make_shared<Atp>(options);
}

PlannedPolicyPtr atp_from(const OptionReader& reader) {
  AtpOptions options;
  if (const auto file = reader.text("weights"))
    options.weights = std::make_shared<const AtpWeights>(reader.files().atp_weights(std::string(*file)));
  const AtpWeights* weights = options.weights.get();
  AtpSettings& settings = options.settings;
  if (weights) settings = weights->settings;
  options.theta_r = reader.numbers("theta_r").value_or(std::vector<double>{});
  options.theta_s = reader.numbers("theta_s").value_or(std::vector<double>{});
  set_or_agree(reader, weights, "layers", settings.layers, read_layers(reader));
  set_or_agree(reader, weights, "strides", settings.strides,
               reader.integers("strides").value_or(std::vector<int64_t>{}));
  set_or_agree(reader, weights, "lambda_sample", settings.lambda_sample,
               reader.number("lambda_sample", settings.lambda_sample));
  set_or_agree(reader, weights, "norm", settings.norm, reader.choice("norm", settings.norm, kNorms));
  set_or_agree(reader, weights, "min_keep", settings.min_keep, reader.integer("min_keep", settings.min_keep, 0));
  set_or_agree(reader, weights, "scores", settings.scores, reader.choice("scores", settings.scores, kScores));
  options.strategy = reader.choice("strategy", settings.strategy, kStrategies);
  options.common = reader.common();
  return std::make_shared<Atp>(options);
}

}  // namespace espalier
