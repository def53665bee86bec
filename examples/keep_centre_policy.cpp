// SPDX-License-Identifier: Apache-2.0
// A policy as a plugin: before the decoder, what stands near the middle of each picture stays.
//   espalier generate --policy-plugin keep_centre_policy.so --policy keep_centre:share=0.5 --image F --prompt T
#include <ATen/TensorOperators.h>

#include <cstdlib>

#include "espalier/error.h"
#include "espalier/policy_plugin.h"

using namespace espalier;

struct KeepCentre final : PruningPolicy {
  explicit KeepCentre(double of_each_side) : share(of_each_side) {}
  std::string spec() const override { return "keep_centre:share=" + std::to_string(share); }
  std::vector<Step> steps(const ModelFacts&, const PromptLayout& prompt) const override {
    if (share == 1.0) return {};
    const at::Tensor rows = prompt.grid_row.to(at::kDouble), cols = prompt.grid_col.to(at::kDouble);
    at::Tensor off_centre =
        rows * 0;  // of each token: distance from the middle, the larger of rows and columns, 0 to 1
    for (size_t i = 0; i < prompt.images.size(); ++i) {
      const auto [height, width] = prompt.images[i].grid;
      const at::Tensor far = ((rows * 2 + 1) / height - 1).abs().maximum(((cols * 2 + 1) / width - 1).abs());
      off_centre = far.where(prompt.image == static_cast<int64_t>(i), off_centre);
    }
    return {
        {.at = {Site::kProjectorOutput}, .decide = [=, this](const TokenLayout& layout, std::span<const at::Tensor>) {
           const at::Tensor far = off_centre.index_select(0, layout.source_index.index_select(0, layout.image_tokens));
           return Verdict{.kept = indices_of(far <= share), .scores = (1 - far).to(at::kFloat)};
         }}};
  }
  double share;
};

ESPALIER_POLICY_PLUGIN("keep_centre", [](std::span<const PluginOption> options) -> PolicyPtr {
  const double share = options.empty() ? 0.5 : std::atof(options[0].value.c_str());
  if (options.size() > 1 || (!options.empty() && options[0].name != "share") || !(share > 0 && share <= 1))
    throw Error("keep_centre: its one option is share, above 0 and at most 1");
  return std::make_shared<KeepCentre>(share);
})
