// SPDX-License-Identifier: Apache-2.0
#include "layout/ranking.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/bincount.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/isin.h>
#include <ATen/ops/nan_to_num.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>
#include <string>
#include <utility>

#include "espalier/error.h"
#include "espalier/ops.h"

namespace espalier {

namespace {

using Numbers = std::vector<int64_t>;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

Numbers begins_of(const Numbers& sizes) {
  Numbers begin(sizes.size() + 1, 0);
  std::partial_sum(sizes.begin(), sizes.end(), begin.begin() + 1);
  return begin;
}

// Tokens of each crop, ascending, in the order of crops_of.
Pools crop_pools(const TokenLayout& layout) {
  const std::vector<CropFacts> crops = crops_of(*layout.prompt);
  std::map<std::pair<int64_t, int64_t>, size_t> place;
  for (size_t i = 0; i < crops.size(); ++i) place[{crops[i].image, crops[i].crop}] = i;
  std::vector<Numbers> tokens(crops.size());
  int64_t ordinal = 0;
  if (layout.is_whole) {
    for (const Segment& s : layout.prompt->segments) {
      if (s.begin < layout.begin) continue;
      if (s.kind == Segment::Kind::kRowBreak && layout.row_breaks_compete) ++ordinal;
      for (int64_t t = s.begin; s.kind == Segment::Kind::kPatches && t < s.end; ++t)
        tokens[place.at({s.image, s.crop})].push_back(ordinal++);
    }
  } else {
    const auto of_tokens = [&](const at::Tensor& fact) { return fact.index_select(0, layout.image_tokens).cpu(); };
    const at::Tensor image = of_tokens(layout.image), crop = of_tokens(layout.crop), kind = of_tokens(layout.kind);
    for (; ordinal < layout.num_image_tokens(); ++ordinal)
      if (kind.const_data_ptr<int64_t>()[ordinal] == static_cast<int64_t>(Segment::Kind::kPatches))
        tokens[place.at({image.const_data_ptr<int64_t>()[ordinal], crop.const_data_ptr<int64_t>()[ordinal]})].push_back(
            ordinal);
  }
  Numbers all, sizes;
  for (const Numbers& crop : tokens) {
    all.insert(all.end(), crop.begin(), crop.end());
    sizes.push_back(std::ssize(crop));
  }
  return {int64_tensor(all).to(layout.image_tokens.device()), begins_of(sizes), {}, {}};
}

// Ordinals and number of the image tokens that a budget judges.
struct Judged {
  at::Tensor mask;  // bool [m]; undefined: all
  int64_t count = 0;
};

Judged judged_by(const Budget& budget, const TokenLayout& layout, const Numbers& per_image) {
  if (budget.images.empty()) return {{}, layout.num_image_tokens()};
  Judged judged;
  for (const int64_t i : budget.images) judged.count += per_image[static_cast<size_t>(i)];
  const at::Tensor image = layout.image.index_select(0, layout.image_tokens);
  judged.mask = at::isin(image, int64_tensor(budget.images).to(image.device()));
  return judged;
}

Pools judged_pools(const Budget& budget, const TokenLayout& layout, const Numbers& per_image, const Judged& judged) {
  if (!judged.mask.defined()) return pools_of(layout, budget.pool);
  if (budget.pool == Budget::Pool::kCrop) throw Error("layout: pools of crops are judged in all images");
  Pools pools;
  pools.tokens = indices_of(judged.mask, judged.count);
  pools.begin = {0, judged.count};
  if (budget.pool == Budget::Pool::kRequest) return pools;
  Numbers sizes(per_image.size(), 0);
  for (const int64_t i : budget.images) sizes[static_cast<size_t>(i)] = per_image[static_cast<size_t>(i)];
  pools.begin = begins_of(sizes);
  return pools;
}

// Tokens of each pool that are true in `mask` [m]. Waits for the device.
Numbers counted(const Pools& pools, const at::Tensor& mask) {
  const at::Tensor host = mask.index_select(0, pools.tokens).cpu().contiguous();
  Numbers numbers;
  for (size_t i = 0; i + 1 < pools.begin.size(); ++i)
    numbers.push_back(std::count(host.const_data_ptr<bool>() + pools.begin[i],
                                 host.const_data_ptr<bool>() + pools.begin[i + 1], true));
  return numbers;
}

// The best `numbers` of each block of `scores`; ascending.
at::Tensor best_of_blocks(const at::Tensor& scores, const Numbers& begin, const Numbers& numbers) {
  return ops::topk_sorted(scores, int64_tensor(begin), int64_tensor(numbers));
}

// The floors of images, where a pool holds several: the best of each stay. `always` bool [m], scores [m].
at::Tensor with_floors(const at::Tensor& always, const at::Tensor& scores, const Budget& budget,
                       const TokenLayout& layout, const Numbers& per_image, int64_t min_per_image) {
  Numbers stay = protected_per_image(*layout.prompt, layout.row_breaks_compete, min_per_image);
  for (size_t i = 0; i < stay.size(); ++i) {
    const bool is_judged = budget.images.empty() || std::ranges::count(budget.images, static_cast<int64_t>(i)) > 0;
    stay[i] = is_judged ? std::min(stay[i], per_image[i]) : 0;  // fewer where an earlier policy left fewer
  }
  const at::Tensor ranked = scores.masked_fill(always, kInfinity);
  return always.index_fill(0, best_of_blocks(ranked, begins_of(per_image), stay), true);
}

// The same where rows were freed: these rank behind all that a verdict can say, numbers that are none among it.
at::Tensor without_freed(const at::Tensor& scores, const RowsLeft& left) {
  const at::Tensor of_heads = scores.to(at::kFloat).expand_as(left.mask);
  return at::nan_to_num(of_heads, std::numeric_limits<float>::lowest(), kInfinity, std::numeric_limits<float>::lowest())
      .masked_fill(left.mask.logical_not(), -kInfinity);
}

// Each KV head cuts for itself; all keep equally many.
at::Tensor cut_heads(const at::Tensor& scores, const at::Tensor& always, int64_t num_kept) {
  const int64_t heads = scores.size(0), m = scores.size(1);
  const at::Tensor ranked = scores.masked_fill(always, kInfinity).flatten();
  const at::Tensor best = best_of_blocks(ranked, begins_of(Numbers(static_cast<size_t>(heads), m)),
                                         Numbers(static_cast<size_t>(heads), num_kept));
  return best.view({heads, num_kept}) - at::arange(heads, best.options()).mul(m).unsqueeze(1);
}

class Ranking {
 public:
  Ranking(const TokenLayout& layout, const PlannedStep& planned, Verdict verdict, int64_t min_per_image,
          const RowsLeft& left)
      : layout_(layout),
        budget_(planned.step.budget),
        who_(planned.step.policy),
        counts_(planned.counts),
        verdict_(std::move(verdict)),
        min_per_image_(min_per_image),
        left_(left),
        per_image_(needs_images() ? layout.tokens_per_image() : Numbers()),
        judged_(judged_by(budget_, layout, per_image_)),
        pools_(judged_pools(budget_, layout, per_image_, judged_)) {}

  Cut cut() {
    check();
    always_ = layout_.pinned.index_select(0, layout_.image_tokens);
    if (verdict_.always.defined()) always_ = always_ | verdict_.always;
    pools_.num_kept = numbers();
    Cut cut{.scores = verdict_.scores, .judged = judged_.mask, .notes = std::move(verdict_.notes)};
    if (left_.mask.defined()) {
      if (verdict_.choose) throw Error(who_ + ": a choice cannot be made where each KV head has other rows left");
      verdict_.scores = without_freed(scores(), left_);
      for (int64_t& n : pools_.num_kept) n = std::min(n, left_.count);
      if (cut.scores.defined() && cut.scores.dim() == 2) cut.scores = cut.scores.mean(0);
      cut.kept = heads();
      return cut;
    }
    if (verdict_.scores.defined()) verdict_.scores = verdict_.scores.to(at::kFloat);
    if (verdict_.scores.defined() && verdict_.scores.dim() == 2) {
      cut.kept = heads();
      cut.scores = cut.scores.mean(0);
      return cut;
    }
    if (min_per_image_ > 0 && budget_.pool == Budget::Pool::kRequest)
      always_ = with_floors(always_, scores(), budget_, layout_, per_image_, min_per_image_);
    pools_.always = always_.index_select(0, pools_.tokens);
    Choice choice;
    if (verdict_.choose)
      choice = verdict_.choose(pools_);
    else
      choice.kept = best_of(pools_, scores());
    cut.kept = with_the_rest(choice.kept);
    cut.added = std::move(choice.added);
    cut.crop_by_crop = choice.crop_by_crop;
    const int64_t wanted = std::accumulate(pools_.num_kept.begin(), pools_.num_kept.end(), int64_t{0});
    if (cut.added.empty() && !cut.crop_by_crop && choice.kept.size(0) == wanted) cut.known_per_image = left_per_image();
    return cut;
  }

 private:
  bool needs_images() const {
    return !budget_.images.empty() || min_per_image_ > 0 || budget_.pool == Budget::Pool::kImage;
  }

  void check() const {
    const int64_t m = layout_.num_image_tokens();
    const at::Tensor& scores = verdict_.scores;
    if (scores.defined() && (scores.dim() > 2 || scores.dim() < 1 || scores.size(-1) != m))
      throw Error(who_ + ": a ranking of " + std::to_string(m) + " image tokens needs as many scores");
    if (counts_.empty() && !budget_.is_adaptive)
      throw Error(who_ + ": a ranking needs a budget, and the step has none");
    const size_t pools = pools_.begin.size() - 1;
    if (!verdict_.num_kept.empty() && verdict_.num_kept.size() != pools)
      throw Error(who_ + ": num_kept has " + std::to_string(verdict_.num_kept.size()) + " entries for " +
                  std::to_string(pools) + " pools");
    if (!counts_.empty() && counts_.size() != pools)
      throw Error(who_ + ": the budget counts " + std::to_string(counts_.size()) + " of " + std::to_string(pools) +
                  " pools");
    if (counts_.empty() && verdict_.num_kept.empty() && !verdict_.always.defined())
      throw Error(who_ + ": an adaptive budget needs num_kept, or the tokens that always stay");
  }

  at::Tensor scores() const {
    if (verdict_.scores.defined()) return verdict_.scores;
    return at::zeros({layout_.num_image_tokens()}, layout_.image_tokens.options().dtype(at::kFloat));
  }

  // What stays of each pool, of what is there.
  Numbers numbers() const {
    Numbers numbers = counts_;
    if (numbers.empty()) {
      numbers = !verdict_.num_kept.empty() ? verdict_.num_kept : counted(pools_, always_);
      raise_to_floors(numbers, budget_, *layout_.prompt, layout_.row_breaks_compete, min_per_image_);
    }
    for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = std::min(numbers[i], pools_.size(i));
    return numbers;
  }

  at::Tensor heads() const {
    if (budget_.pool != Budget::Pool::kRequest || !budget_.images.empty())
      throw Error(who_ + ": scores of each KV head rank one pool, the request");
    at::Tensor always = always_.unsqueeze(0).expand_as(verdict_.scores);
    if (min_per_image_ > 0) {
      std::vector<at::Tensor> of_heads;
      for (const at::Tensor& head : verdict_.scores.unbind())
        of_heads.push_back(with_floors(always_, head, budget_, layout_, per_image_, min_per_image_));
      always = at::stack(of_heads);
    }
    return cut_heads(verdict_.scores, always, pools_.num_kept[0]);
  }

  // Ascending, with the tokens that nothing was said about.
  at::Tensor with_the_rest(const at::Tensor& kept) const {
    if (!judged_.mask.defined()) return std::get<0>(kept.sort());
    const at::Tensor stays = judged_.mask.logical_not().index_fill(0, kept, true);
    return indices_of(stays, layout_.num_image_tokens() - judged_.count + kept.size(0));
  }

  Numbers left_per_image() const {
    Numbers left = per_image_;
    if (budget_.pool == Budget::Pool::kRequest) return {};
    if (budget_.pool == Budget::Pool::kCrop) {
      left.assign(layout_.prompt->images.size(), 0);
      const std::vector<CropFacts> crops = crops_of(*layout_.prompt);
      for (size_t i = 0; i < crops.size(); ++i) left[static_cast<size_t>(crops[i].image)] += pools_.num_kept[i];
      return left;
    }
    for (size_t i = 0; i < left.size(); ++i)
      if (budget_.images.empty() || std::ranges::count(budget_.images, static_cast<int64_t>(i)) > 0)
        left[i] = pools_.num_kept[i];
    return left;
  }

  const TokenLayout& layout_;
  const Budget& budget_;
  const std::string& who_;
  const Numbers& counts_;
  Verdict verdict_;
  int64_t min_per_image_;
  const RowsLeft& left_;
  Numbers per_image_;  // tokens of each image now; empty where nobody asks
  Judged judged_;
  Pools pools_;
  at::Tensor always_;  // bool [m]
};

}  // namespace

std::vector<int64_t> TokenLayout::tokens_per_image() const {
  if (!known_per_image.empty()) return known_per_image;
  const auto images = static_cast<int64_t>(prompt->images.size());
  const at::Tensor numbers = at::bincount(image.index_select(0, image_tokens), {}, images).cpu();
  return {numbers.const_data_ptr<int64_t>(), numbers.const_data_ptr<int64_t>() + images};
}

Pools pools_of(const TokenLayout& layout, Budget::Pool pool) {
  if (pool == Budget::Pool::kCrop) return crop_pools(layout);
  const int64_t m = layout.num_image_tokens();
  Pools pools;
  pools.tokens = at::arange(m, layout.image_tokens.options());
  pools.begin = pool == Budget::Pool::kImage ? begins_of(layout.tokens_per_image()) : Numbers{0, m};
  return pools;
}

at::Tensor patch_index(const TokenLayout& layout) {
  if (!layout.row_breaks_compete) return at::arange(layout.num_image_tokens(), layout.image_tokens.options());
  const at::Tensor kind = layout.kind.index_select(0, layout.image_tokens);
  return ((kind == static_cast<int64_t>(Segment::Kind::kPatches)).to(at::kLong).cumsum(0) - 1).clamp_min(0);
}

at::Tensor best_of(const Pools& pools, const at::Tensor& scores) {
  const at::Tensor ranked = scores.to(at::kFloat).index_select(0, pools.tokens).masked_fill(pools.always, kInfinity);
  return pools.tokens.index_select(0, best_of_blocks(ranked, pools.begin, pools.num_kept));
}

at::Tensor int64_tensor(std::span<const int64_t> values) {
  at::Tensor tensor = at::empty({static_cast<int64_t>(values.size())}, at::kLong);
  std::copy(values.begin(), values.end(), tensor.data_ptr<int64_t>());
  return tensor;
}

at::Tensor indices_of(const at::Tensor& mask, std::optional<int64_t> count) {
  if (!count || mask.device().is_cpu()) return mask.nonzero().squeeze(1);
  const int64_t n = mask.size(0);  // the false ones sort behind the true ones
  const at::Tensor rank = at::arange(n, mask.options().dtype(at::kLong)) + mask.logical_not().to(at::kLong) * n;
  return std::get<0>(rank.sort()).slice(0, 0, *count);
}

Cut cut_of(const TokenLayout& layout, const PlannedStep& planned, Verdict verdict, int64_t min_per_image,
           const RowsLeft& left) {
  const bool is_ranking =
      verdict.choose || (verdict.scores.defined() && !verdict.kept.defined()) || verdict.always.defined();
  if (planned.step.only_reads && !verdict.kept.defined())
    return {.kept = at::arange(layout.num_image_tokens(), layout.image_tokens.options()), .notes = verdict.notes};
  if (!is_ranking)
    return {.kept = verdict.kept,
            .added = std::move(verdict.added),
            .crop_by_crop = verdict.crop_by_crop,
            .scores = verdict.scores,
            .judged = verdict.judged,
            .notes = std::move(verdict.notes)};
  return Ranking(layout, planned, std::move(verdict), min_per_image, left).cut();
}

}  // namespace espalier
