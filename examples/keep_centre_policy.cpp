// SPDX-License-Identifier: Apache-2.0
// A policy as a plugin: before the decoder, what stands near the middle of each picture stays.
//   espalier generate --policy-plugin keep_centre_policy.so --policy keep_centre:share=0.5 --image F --prompt T
#include <ATen/TensorOperators.h>
#include <ATen/ops/tensor.h>

#include <cstdlib>
#include <memory>

#include "espalier/error.h"
#include "espalier/policy_plugin.h"

namespace {

using namespace espalier;

class KeepCentre final : public PruningPolicy {
 public:
  explicit KeepCentre(double share) : share_(share) {}
  std::string spec() const override { return "keep_centre:share=" + std::to_string(share_); }

  std::vector<ActPoint> points(const ModelFacts&, const PromptLayout& prompt) const override {
    if (prompt.images.empty() || share_ == 1.0) return {};
    return {{Site::kProjectorOutput}};
  }

  std::vector<Signal> needs(const ActPoint&, const TokenLayout&, const State*) const override { return {}; }

  Verdict decide(const ActPoint&, const TokenLayout& layout, std::span<const at::Tensor>, State*) const override {
    // Distance from the middle of the crop, the larger of rows and columns, 0 to 1.
    const PromptLayout& prompt = *layout.prompt;
    std::vector<int64_t> rows, cols;
    for (const ImageShape& image : prompt.images) rows.push_back(image.grid.rows), cols.push_back(image.grid.cols);
    const at::Tensor source = layout.source_index.index_select(0, layout.image_tokens);
    const auto off_centre = [&](const at::Tensor& place, const std::vector<int64_t>& sizes) {
      const at::Tensor size = at::tensor(sizes, source.options()).index_select(0, prompt.image.index_select(0, source));
      return ((place.index_select(0, source).to(at::kDouble) + 0.5) * 2.0 / size - 1.0).abs();
    };
    const at::Tensor distance = off_centre(prompt.grid_row, rows).maximum(off_centre(prompt.grid_col, cols));
    return {.kept = (distance <= share_).nonzero().squeeze(1), .scores = (1.0 - distance).to(at::kFloat)};
  }

 private:
  double share_;  // of each side
};

PolicyPtr make(std::span<const PluginOption> options) {
  double share = 0.5;
  for (const auto& [name, value] : options) {
    if (name != "share") throw Error("keep_centre: no option " + name + " (there is share)");
    share = std::atof(value.c_str());
    if (!(share > 0 && share <= 1)) throw Error("keep_centre: share=" + value + " is not in (0, 1]");
  }
  return std::make_shared<KeepCentre>(share);
}

}  // namespace

ESPALIER_POLICY_PLUGIN("keep_centre", make)
