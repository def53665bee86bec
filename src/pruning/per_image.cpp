// SPDX-License-Identifier: Apache-2.0
#include "espalier/policies/per_image.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/isin.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <string>

#include "espalier/error.h"
#include "espalier/pruning.h"

namespace espalier {

namespace {

using Images = std::vector<int64_t>;

at::Tensor rows_of(const at::Tensor& values, const at::Tensor& mask) {
  return values.index_select(0, mask.nonzero().squeeze(1));
}

// New tokens in pictures that are not judged.
void leave_out(std::vector<NewTokens>& all, const at::Tensor& is_judged) {
  for (NewTokens& added : all) {
    const at::Tensor stays = is_judged.index_select(0, added.position_from);
    added.vectors = rows_of(added.vectors, stays);
    added.stands_at = rows_of(added.stands_at, stays);
    added.position_from = rows_of(added.position_from, stays);
  }
}

// A choice is made in the pools of all images, as its policy expects them: those that are not judged stay whole, and
// what the choice says of them is left out.
Choice choose_among(const std::function<Choice(const Pools&)>& choose, const TokenLayout& layout, const Pools& judged,
                    const at::Tensor& is_judged) {
  Pools all = pools_of(layout, Budget::Pool::kImage);
  for (size_t i = 0; i + 1 < all.begin.size(); ++i)
    all.num_kept.push_back(judged.size(i) > 0 ? judged.num_kept[i] : all.size(i));
  all.always = at::zeros_like(is_judged).index_copy(0, judged.tokens, judged.always);
  Choice choice = choose(all);
  choice.kept = rows_of(choice.kept, is_judged.index_select(0, choice.kept));
  leave_out(choice.added, is_judged);
  return choice;
}

// A verdict about all images, of which only `images` are cut.
Verdict judged_only(Verdict verdict, const TokenLayout& layout, const Images& images) {
  const at::Tensor image = layout.image.index_select(0, layout.image_tokens);
  const at::Tensor is_judged = at::isin(image, int64_tensor(images).to(image.device()));
  if (verdict.choose) {
    verdict.choose = [choose = verdict.choose, layout, is_judged](const Pools& pools) {
      return pools.begin.size() == 2 ? choose(pools) : choose_among(choose, layout, pools, is_judged);
    };
  } else if (verdict.kept.defined()) {
    verdict.kept = is_judged.logical_not()
                       .index_fill(0, rows_of(verdict.kept, is_judged.index_select(0, verdict.kept)), true)
                       .nonzero()
                       .squeeze(1);
    leave_out(verdict.added, is_judged);
  }
  return verdict;
}

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
  PolicyPtr for_model(const ModelFacts& model) const override {
    PolicyPtr others = espalier::for_model(others_, model);
    std::vector<std::pair<PolicyPtr, Images>> own = own_;
    for (auto& [policy, images] : own) policy = espalier::for_model(policy, model);
    return others == others_ && own == own_ ? nullptr : std::make_shared<PerImage>(std::move(others), std::move(own));
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
        step.scope = std::max(step.scope, Scope::kImage);
      }
      step.budget.images = images;
      if (step.decide)
        step.decide = [decide = step.decide, images](const TokenLayout& layout, std::span<const at::Tensor> signals) {
          return judged_only(decide(layout, signals), layout, images);
        };
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
