// SPDX-License-Identifier: Apache-2.0
#include "training/atp_loss.h"

#include <torch/types.h>

namespace espalier {

AtpCounts soft_counts(std::span<const MaskedSequence> sequences, std::span<const MaskTrace> traces) {
  AtpCounts counts;
  std::vector<at::Tensor> sizes, left;
  for (size_t s = 0; s < sequences.size(); ++s) {
    if (traces[s].presence.empty()) continue;  // no picture
    const PromptLayout& prompt = *sequences[s].prompt;
    const at::Tensor is_patch = prompt.kind == static_cast<int64_t>(Segment::Kind::kPatches);
    const at::Tensor image = prompt.image.masked_select(is_patch);
    const auto by_image = [&](const at::Tensor& of_token) {
      return torch::zeros({std::ssize(prompt.images)}, of_token.options().requires_grad(false))
          .index_add(0, image, of_token);
    };
    std::vector<at::Tensor> columns;
    for (const at::Tensor& presence : traces[s].presence) columns.push_back(by_image(presence));
    left.push_back(torch::stack(columns, 1));
    sizes.push_back(by_image(torch::ones_like(traces[s].presence[0].detach())));
    counts.layers = traces[s].layers;
  }
  if (left.empty()) return counts;
  counts.sizes = torch::cat(sizes);
  counts.left = torch::cat(left);
  return counts;
}

at::Tensor mean_tokens(const AtpCounts& counts, int num_layers) {
  const size_t modules = counts.layers.size();
  at::Tensor sum = counts.sizes * static_cast<double>(counts.layers.front());
  for (size_t k = 0; k < modules; ++k) {
    const int end = k + 1 < modules ? counts.layers[k + 1] : num_layers;
    sum = sum + counts.left.select(1, static_cast<int64_t>(k)) * static_cast<double>(end - counts.layers[k]);
  }
  return sum / static_cast<double>(num_layers);
}

at::Tensor depth_loss(const AtpCounts& counts) {
  at::Tensor sum = torch::zeros_like(counts.sizes);
  for (size_t k = 0; k < counts.layers.size(); ++k)
    sum = sum + counts.left.select(1, static_cast<int64_t>(k)) * static_cast<double>(counts.layers[k]);
  return (sum / counts.sizes).mean();
}

at::Tensor target_loss(const AtpCounts& counts, int num_layers, double target_ratio, bool is_normalised) {
  const at::Tensor size = counts.sizes.mean();
  const at::Tensor distance = (mean_tokens(counts, num_layers).mean() - size * target_ratio).abs();
  return is_normalised ? distance / size : distance;
}

}  // namespace espalier
