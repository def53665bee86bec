// SPDX-License-Identifier: Apache-2.0
#include "families/qwen_vl/qwen_vl.h"

#include <memory>

#include "families/qwen_vl/pixels.h"
#include "model/projector.h"

namespace espalier {

namespace {

struct Weights {
  PatchVitWeights vision;
  ProjectorWeights projector;
};

Weights bind(const QwenVlConfig& config, const WeightSource& source) {
  const int64_t cell = config.vision.patches_per_token() * config.vision.hidden_size;
  return {.vision = bind_patch_vit(config.vision, source),
          .projector = {.linear1 = bind_linear(source, "vision.merger.mlp.0", cell, cell),
                        .linear2 = bind_linear(source, "vision.merger.mlp.2", config.decoder.hidden_size, cell)}};
}

struct QwenVl {
  QwenVlConfig config;
  QwenImageProcessor processor;
  Weights weights;
};

// All layers run, since the features are the last one's.
VisionFeatures run_tower(const QwenVl& m, const ImagePlan& plan, const at::Tensor& pixels,
                         const VisionObserver& observe) {
  const GridSize cells = plan.shape.grid;
  const int64_t merge = m.config.vision.merge_size;
  return {run_patch_vit(m.config.vision, m.weights.vision, pixels, cells.rows * merge, cells.cols * merge, observe)};
}

VisionFrontEnd front_end(const std::shared_ptr<const QwenVl>& m) {
  return {.plan = [m](int width, int height) { return plan_patches(m->processor, width, height); },
          .plan_as =
              [m](int width, int height, const ImageShape& wanted) {
                return plan_patches(limited_to(m->processor, wanted), width, height);
              },
          .pixels = [m](const ImagePlan& plan, const Image& image) { return patch_pixels(m->processor, plan, image); },
          .batch_pixels = batch_patches,
          .pixels_in_batch = patches_in_batch,
          .tower = [m](const ImagePlan& plan, const at::Tensor& pixels, int,
                       const VisionObserver& observe) { return run_tower(*m, plan, pixels, observe); },
          .project = [m](const at::Tensor& features,
                         const TokenLayout&) { return project(m->weights.projector, Activation::kGelu, features); },
          .positions = mrope_positions};
}

}  // namespace

ModelConfig describe(const QwenVlConfig& config) {
  return {.decoder = config.decoder,
          .vision = config.facts(),
          .image_token_id = config.image_token_id,
          .dtype = config.dtype,
          .bind_front_end = [config](const WeightSource& source) { bind(config, source); },
          .load_front_end =
              [config](const std::filesystem::path& folder, const WeightSource& source) {
                return front_end(std::make_shared<const QwenVl>(
                    QwenVl{config, load_patch_processor(folder, config.vision), bind(config, source)}));
              }};
}

}  // namespace espalier
