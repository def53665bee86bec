// SPDX-License-Identifier: Apache-2.0
#include "families/llava_next/llava_next.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>

#include <memory>

#include "families/llava/llava.h"
#include "families/llava/tower.h"
#include "families/llava_next/config.h"
#include "families/llava_next/pixels.h"
#include "model/config_section.h"

namespace espalier {

namespace {

struct Weights {
  LlavaTower tower;
  at::Tensor row_break;  // [d], image_newline on disk
};

Weights bind(const LlavaConfig& config, const WeightSource& source) {
  return {.tower = bind_llava_tower(config, source),
          .row_break = source("image_newline", {config.decoder.hidden_size})};
}

struct LlavaNext {
  LlavaConfig config;
  CropProcessor processor;
  Weights weights;
};

ImagePlan plan(const CropProcessor& processor, const ImageShape& wanted, int width, int height) {
  return wanted.tiling ? plan_tiles(processor, width, height) : plan_crop(processor, width, height);
}

at::Tensor image_tokens(const LlavaNext& m, const at::Tensor& features, const TokenLayout& layout) {
  const at::Tensor patches = project(m.config, m.weights.tower.projector, features);
  const auto places = [&](Segment::Kind kind) {
    const at::Tensor kinds = layout.kind.masked_select(layout.kind != static_cast<int64_t>(Segment::Kind::kText));
    return (kinds == static_cast<int64_t>(kind)).nonzero().squeeze(1);
  };
  const at::Tensor row_breaks = places(Segment::Kind::kRowBreak);
  return at::empty({patches.size(0) + row_breaks.size(0), patches.size(1)}, patches.options())
      .index_copy_(0, places(Segment::Kind::kPatches), patches)
      .index_copy_(0, row_breaks, m.weights.row_break.expand({row_breaks.size(0), -1}));
}

VisionFrontEnd front_end(const std::shared_ptr<const LlavaNext>& m) {
  return {
      .plan = [m](int width, int height) { return plan_tiles(m->processor, width, height); },
      .plan_as =
          [m](int width, int height, const ImageShape& wanted) {
            return plan(resized_tiles(m->processor, wanted), wanted, width, height);
          },
      .pixels = [m](const ImagePlan& plan,
                    const Image& image) { return crop_pixels(resized_tiles(m->processor, plan.shape), plan, image); },
      .batch_pixels = batch_tiles,
      .pixels_in_batch = tiles_in_batch,
      .tower =
          [m](const ImagePlan&, const at::Tensor& pixels, int num_layers, const VisionObserver& observe) {
            return run_tower(m->config, m->weights.tower.vision, pixels, num_layers, observe);
          },
      .project = [m](const at::Tensor& features,
                     const TokenLayout& layout) { return image_tokens(*m, features, layout); },
      .positions = plain_positions};
}

}  // namespace

ModelConfig read_llava_next(const Section& root) {
  const LlavaNextConfig config = read_llava_next_config(root);
  ModelConfig description = describe(config.llava);
  description.bind_front_end = [config](const WeightSource& source) { bind(config.llava, source); };
  description.load_front_end = [config](const std::filesystem::path& folder, const WeightSource& source) {
    check_feature_selection(config.llava, folder);
    return front_end(std::make_shared<const LlavaNext>(
        LlavaNext{config.llava, load_tile_processor(folder, config), bind(config.llava, source)}));
  };
  return description;
}

}  // namespace espalier
