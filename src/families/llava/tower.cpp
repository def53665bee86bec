// SPDX-License-Identifier: Apache-2.0
#include "families/llava/tower.h"

#include "espalier/error.h"

namespace espalier {

void check_feature_selection(const LlavaConfig& config, const std::filesystem::path& folder) {
  if (config.keeps_class_token)
    throw Error(folder.string() + "/config.json: vision_feature_select_strategy full: only default is supported");
}

LlavaTower bind_llava_tower(const LlavaConfig& config, const WeightSource& source) {
  const int64_t d = config.decoder.hidden_size;
  return {.vision = bind_clip(config.vision, source),
          .projector = {
              .linear1 = bind_linear(source, "projector.linear_1", d, config.feature_size(), config.projector_bias),
              .linear2 = bind_linear(source, "projector.linear_2", d, d, config.projector_bias)}};
}

VisionFeatures run_tower(const LlavaConfig& config, const ClipWeights& weights, const at::Tensor& pixels,
                         int num_layers, const VisionObserver& observe) {
  return run_clip(config.vision, weights, pixels, config.feature_states(), num_layers, observe);
}

at::Tensor project(const LlavaConfig& config, const ProjectorWeights& weights, const at::Tensor& features) {
  return project(weights, config.projector_activation, features);
}

}  // namespace espalier
