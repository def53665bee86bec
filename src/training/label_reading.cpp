// SPDX-License-Identifier: Apache-2.0
#include "training/label_reading.h"

#include <torch/types.h>

#include <vector>

#include "synth/crowd.h"
#include "training/patch_labels.h"
#include "training/tower_task.h"

namespace espalier {

namespace {

constexpr int64_t kPictures = 192, kAtOnce = 16;
constexpr double kRidge = 1e-4;  // of the features' mean square, for columns that say the same

}  // namespace

void read_labels_from_tower(const LlavaConfig& config, const ImageProcessor& processor, Parameters& parameters,
                            uint64_t seed) {
  const torch::NoGradGuard no_gradients;
  const ClipWeights tower = bind_parameters(config, parameters, torch::kFloat).vision;
  const int grid = static_cast<int>(config.vision.grid());
  const int64_t width = config.vision.hidden_size;
  at::Tensor products = torch::zeros({width + 1, width + 1}, torch::kDouble);
  at::Tensor with_labels = torch::zeros({width + 1, width}, torch::kDouble);
  for (int64_t first = 0; first < kPictures; first += kAtOnce) {
    std::vector<synth::Drawing> drawings;
    std::vector<at::Tensor> labels;
    for (int64_t i = first; i < first + kAtOnce; ++i) {
      const uint64_t scene_seed = synth::scene_seed(synth::Split::kTrain, 0x80000 + seed, static_cast<uint64_t>(i));
      const synth::Scene scene = crowded_picture(scene_seed, i, {.clutter = true, .distractor = true});
      drawings.push_back(synth::draw(scene, static_cast<int>(config.vision.image_size)));
      labels.push_back(label_features(patch_labels(scene, synth::patch_covers(drawings.back(), grid, grid)), width));
    }
    const at::Tensor features = patch_features(config, tower, processor, drawings).to(torch::kDouble);
    const at::Tensor with_one = torch::cat({features, torch::ones({features.size(0), 1}, torch::kDouble)}, 1);
    products += with_one.t().mm(with_one) / (kPictures * grid * grid);
    with_labels += with_one.t().mm(torch::cat(labels).to(torch::kDouble)) / (kPictures * grid * grid);
  }
  const double mean_square = products.diagonal().narrow(0, 0, width).mean().item<double>();
  products += kRidge * mean_square * torch::eye(width + 1, torch::kDouble);
  const at::Tensor map = at::linalg_solve(products, with_labels).to(torch::kFloat);  // [width + 1, width]
  const at::Tensor first_layer = parameters.at("projector.linear_1.weight");
  parameters.set("projector.linear_1.bias",
                 parameters.at("projector.linear_1.bias") + first_layer.mv(map.select(0, width)));
  parameters.set("projector.linear_1.weight", first_layer.mm(map.narrow(0, 0, width).t()));
}

}  // namespace espalier
