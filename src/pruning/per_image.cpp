// SPDX-License-Identifier: Apache-2.0
#include "espalier/policies/per_image.h"

#include <algorithm>
#include <string>

#include "espalier/error.h"
#include "espalier/pruning.h"

namespace espalier {

namespace {

using Images = std::vector<int64_t>;

class PerImage final : public PruningPolicy {
 public:
  PerImage(PolicyPtr others, std::vector<std::pair<PolicyPtr, Images>> own)
      : others_(std::move(others)), own_(std::move(own)) {
    for (auto& [policy, images] : own_) {
      std::ranges::sort(images);
      if (policy->common() != others_->common())
        throw Error("policy of one image: positions, min_per_image and min_tokens of " + policy->spec() + " and " +
                    others_->spec() + " differ");
    }
  }

  std::string spec() const override {
    std::string text = others_->spec();
    for (const auto& [policy, images] : own_) {
      text += " | images ";
      for (const int64_t image : images) text += (image == images.front() ? "" : "+") + std::to_string(image);
      text += " " + policy->spec();
    }
    return text;
  }
  CommonOptions common() const override { return others_->common(); }
  // Of those that do anything; they must agree.
  bool row_breaks_compete() const override {
    return others_->row_breaks_compete() ||
           std::ranges::any_of(own_, [](const auto& own) { return own.first->row_breaks_compete(); });
  }

  // As one list in the order of the data; steps at one point stand in the order in which the policies are given.
  std::vector<Step> steps(const ModelFacts& model, const PromptLayout& prompt) const override {
    const auto count = static_cast<int64_t>(prompt.images.size());
    Images left;
    for (int64_t i = 0; i < count; ++i) left.push_back(i);
    std::vector<Step> all;
    for (const auto& [policy, images] : own_) {
      for (const int64_t image : images) {
        if (image < 0 || image >= count) throw Error("policy of one image: there is no image " + std::to_string(image));
        if (std::erase(left, image) == 0)
          throw Error("policy of one image: image " + std::to_string(image) + " has two");
      }
      add(*policy, images, model, prompt, all);
    }
    if (!left.empty()) add(*others_, left, model, prompt, all);
    std::ranges::stable_sort(all, {}, &Step::at);
    return all;
  }

 private:
  void add(const PruningPolicy& policy, const Images& images, const ModelFacts& model, const PromptLayout& prompt,
           std::vector<Step>& all) const {
    const auto refuse = [&](const std::string& why) {
      throw Error("policy of one image: " + policy.spec() + " " + why);
    };
    const ImageShape shape{.grid = {24, 24}, .tiling = GridSize{2, 2}, .crop_boxes = {}};
    const ImageShape wanted = policy.wanted_shape(model, shape);
    if (wanted.grid != shape.grid || wanted.tiling != shape.tiling) refuse("acts on pictures before they are prepared");
    std::vector<Step> steps = policy.steps(model, prompt);
    if (!steps.empty() && policy.row_breaks_compete() != row_breaks_compete())
      refuse("and the others treat row breaks differently; set row_breaks alike");
    for (Step& step : steps) {
      const Budget& budget = step.budget;
      const bool counts_all =
          !budget.images.empty() || (!budget.counts.empty() && budget.pool == Budget::Pool::kRequest);
      if (counts_all) refuse("counts over the whole request in its own way");
      if (budget.is_adaptive ||
          (budget.counts.empty() && !budget.amount.keep_ratio && !budget.amount.num_kept && !step.only_reads))
        refuse("lets the data decide how many tokens stay");
      if (step.adds_on_top) refuse("adds tokens on top of its amount");
      if (step.at.site == Site::kCache) refuse("cuts caches, which hold all pictures");
      if (budget.pool == Budget::Pool::kCrop) {
        if (std::ranges::any_of(prompt.images, [](const ImageShape& image) { return image.tiling.has_value(); }))
          refuse("decides crop by crop, and these pictures have tiles");
        step.budget.pool = Budget::Pool::kImage;  // each is one crop
      }
      step.budget.images = images;
      step.policy = spec();  // of all steps: amounts of different images are not compared with each other
      all.push_back(std::move(step));
    }
  }

  PolicyPtr others_;
  std::vector<std::pair<PolicyPtr, Images>> own_;
};

}  // namespace

PolicyPtr per_image(PolicyPtr others, std::vector<std::pair<PolicyPtr, std::vector<int64_t>>> own) {
  if (own.empty()) return others;
  return std::make_shared<PerImage>(std::move(others), std::move(own));
}

}  // namespace espalier
