// SPDX-License-Identifier: Apache-2.0
#include "training/patch_labels.h"

#include <torch/types.h>

#include <array>
#include <cmath>
#include <string>
#include <utility>

#include "espalier/error.h"
#include "synth/wording.h"

namespace espalier {

using synth::Cover;

std::vector<PatchLabel> patch_labels(const synth::Scene& scene, std::span<const Cover> covers) {
  std::vector<PatchLabel> labels;
  for (const Cover& cover : covers) {
    PatchLabel& label = labels.emplace_back();
    label.thing = static_cast<int64_t>(cover.by);
    const bool is_pointer = cover.by == Cover::By::kPointer;
    if (!is_pointer && cover.by != Cover::By::kObject && cover.by != Cover::By::kMark) continue;
    const size_t number = is_pointer ? scene.screen->pressed : cover.object;
    label.shape = static_cast<int64_t>(scene.objects[number].shape);
    label.colour = static_cast<int64_t>(scene.objects[number].colour);
    if (!scene.marks.empty()) label.mark = static_cast<int64_t>(scene.marks[number].colour);
  }
  return labels;
}

at::Tensor label_features(std::span<const PatchLabel> labels, int64_t width) {
  constexpr float kOn = 4;  // six of them then weigh about what a tower's features weigh
  const auto patches = static_cast<int64_t>(labels.size());
  const auto grid = static_cast<int64_t>(std::lround(std::sqrt(static_cast<double>(patches))));
  const int64_t needed = PatchLabel::kNumThings + synth::kNumShapes + 2 * synth::kNumColours + 2 * grid;
  if (width < needed)
    throw Error("training: labels of " + std::to_string(patches) + " patches need features of " +
                std::to_string(needed) + " numbers, the model has " + std::to_string(width));
  at::Tensor features = torch::zeros({patches, width});
  auto rows = features.accessor<float, 2>();
  for (int64_t p = 0; p < patches; ++p) {
    const PatchLabel& label = labels[static_cast<size_t>(p)];
    const std::array<std::pair<int64_t, int64_t>, 6> sets = {{{label.thing, PatchLabel::kNumThings},
                                                              {label.shape, synth::kNumShapes},
                                                              {label.colour, synth::kNumColours},
                                                              {label.mark, synth::kNumColours},
                                                              {p / grid, grid},
                                                              {p % grid, grid}}};
    int64_t first = 0;
    for (const auto& [value, size] : sets) {
      if (value != PatchLabel::kNothing) rows[p][first + value] = kOn;
      first += size;
    }
  }
  return features;
}

}  // namespace espalier
