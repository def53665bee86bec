// SPDX-License-Identifier: Apache-2.0
// A policy as a plugin: before the decoder, what stands near the middle of each picture stays.
//   espalier generate --policy-plugin keep_centre_policy.so --policy keep_centre:share=1/2 --image F --prompt T
#include <ATen/TensorOperators.h>

#include "espalier/policy_plugin.h"

using namespace espalier;

struct Options {
  Fraction share{1, 2};
  CommonOptions common;
};
const OptionSet<Options> kOptions = {{"share", &Options::share, "part of each side that stays", {0.01, 1}}};

struct KeepCentre final : PruningPolicy {
  explicit KeepCentre(const Options& asked) : options(asked), share(as_number(asked.share)) {}
  std::string spec() const override { return spec_of("keep_centre", kOptions, options); }
  CommonOptions common() const override { return options.common; }
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
  Options options;
  double share;
};

ESPALIER_POLICY_PLUGIN("keep_centre", [](std::span<const GivenOption> given) -> PolicyPtr {
  return std::make_shared<KeepCentre>(options_of("keep_centre", given, kOptions));
})
ESPALIER_POLICY_OPTIONS(kOptions)
