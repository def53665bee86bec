// SPDX-License-Identifier: Apache-2.0
#include "families/llava/llava.h"

#include <memory>

#include "families/llava/pixels.h"
#include "families/llava/tower.h"
#include "model/config_section.h"

namespace espalier {

namespace {

struct Llava {
  LlavaConfig config;
  CropProcessor processor;
  LlavaTower tower;
};

VisionFrontEnd front_end(const std::shared_ptr<const Llava>& m) {
  return {.plan = [m](int width, int height) { return plan_crop(m->processor, width, height); },
          .plan_as = [m](int width, int height,
                         const ImageShape& wanted) { return plan_crop(resized(m->processor, wanted), width, height); },
          .pixels = [m](const ImagePlan& plan,
                        const Image& image) { return crop_pixels(resized(m->processor, plan.shape), plan, image); },
          .batch_pixels = batch_crops,
          .pixels_in_batch = crop_in_batch,
          .tower =
              [m](const ImagePlan&, const at::Tensor& pixels, int num_layers, const VisionObserver& observe) {
                return run_tower(m->config, m->tower.vision, pixels, num_layers, observe);
              },
          .project = [m](const at::Tensor& features,
                         const TokenLayout&) { return project(m->config, m->tower.projector, features); },
          .positions = plain_positions};
}

}  // namespace

ModelConfig describe(const LlavaConfig& config) {
  return {.decoder = config.decoder,
          .vision = config.facts(),
          .image_token_id = config.image_token_id,
          .dtype = config.dtype,
          .bind_front_end = [config](const WeightSource& source) { bind_llava_tower(config, source); },
          .load_front_end =
              [config](const std::filesystem::path& folder, const WeightSource& source) {
                check_feature_selection(config, folder);
                return front_end(std::make_shared<const Llava>(
                    Llava{config, load_crop_processor(folder, config.vision), bind_llava_tower(config, source)}));
              }};
}

ModelConfig read_llava(const Section& root) {
  return describe(read_llava_config(root));
}

}  // namespace espalier
