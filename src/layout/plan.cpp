// SPDX-License-Identifier: Apache-2.0
#include "layout/plan.h"

#include <algorithm>
#include <numeric>
#include <string>

#include "espalier/error.h"

namespace espalier {

namespace {

using Pool = Budget::Pool;
using Numbers = std::vector<int64_t>;

int64_t sum_of(const Numbers& numbers) {
  return std::accumulate(numbers.begin(), numbers.end(), int64_t{0});
}

// The tokens of an image must follow each other: pools of images are cut by number.
void check_images_in_order(const PromptLayout& prompt) {
  int previous = 0;
  for (const Segment& s : prompt.segments) {
    if (s.kind == Segment::Kind::kText) continue;
    if (s.image < previous)
      throw Error("layout: tokens of image " + std::to_string(s.image) + " stand after those of image " +
                  std::to_string(previous));
    previous = s.image;
  }
}

Numbers judged_images(const Budget& budget, const PromptLayout& prompt) {
  if (!budget.images.empty()) return budget.images;
  Numbers all(prompt.images.size());
  std::iota(all.begin(), all.end(), 0);
  return all;
}

bool has_amount(const Budget& budget) {
  return budget.amount.keep_ratio || budget.amount.num_kept;
}

void check_step(const Step& step, const ModelFacts& model) {
  const std::string at = step.policy + ": acts at " + to_string(step.at) + ", but ";
  if (step.at.site >= Site::kBeforeLayer && (step.at.layer < 0 || step.at.layer >= model.num_layers))
    throw Error(at + "the model has layers 0 to " + std::to_string(model.num_layers - 1));
  if (step.at.site == Site::kCache && model.sliding_window > 0)
    throw Error(at + "a cache with a sliding window cannot be pruned");
  const Budget& budget = step.budget;
  if ((has_amount(budget) + !budget.counts.empty() + budget.is_adaptive) > 1)
    throw Error(at + "its budget is more than one of an amount, counts and adaptive");
  const bool is_pooled = has_amount(budget) || !budget.counts.empty() || budget.is_adaptive;
  const Scope widest = budget.pool == Pool::kCrop    ? Scope::kCrop
                       : budget.pool == Pool::kImage ? Scope::kImage
                                                     : Scope::kRequest;
  if (is_pooled && widest > step.scope) throw Error(at + "its pool is wider than its scope");
  if (step.every < 0) throw Error(at + "every is below 0");
  if (step.every > 0 && step.at.site != Site::kCache)
    throw Error(at + "only at a cache can a step be asked again while decoding");
  if (step.every == 0 && (step.revives || step.makes_room))
    throw Error(at + "only a step that is asked again (every) revives tokens or makes room");
  const bool has_number = has_amount(budget) || !budget.counts.empty();
  if (step.makes_room && (step.revives || !has_number || budget.pool != Pool::kRequest || !budget.images.empty()))
    throw Error(at + "room is made of a number for the whole request, where rows are freed");
  if (step.every > 0 && !step.revives && (budget.pool != Pool::kRequest || !budget.images.empty()))
    throw Error(at + "where rows are freed while decoding, all image tokens are one pool");
}

// Upper bounds of what is there, step by step.
class Bounds {
 public:
  Bounds(const PromptLayout& prompt, bool row_breaks_compete) : crops_(crops_of(prompt)) {
    for (size_t i = 0; i < prompt.images.size(); ++i)
      of_image_.push_back(prompt.num_image_tokens(static_cast<int>(i), row_breaks_compete));
  }

  int64_t image(size_t i) const { return of_image_[i]; }
  int64_t crop(size_t i) const { return std::min(crops_[i].size, of_image_[static_cast<size_t>(crops_[i].image)]); }
  int64_t images(const Numbers& list) const {
    int64_t sum = 0;
    for (const int64_t i : list) sum += of_image_[static_cast<size_t>(i)];
    for (const auto& [of, cap] : caps_)
      if (of == list) sum = std::min(sum, cap);
    return sum;
  }
  int64_t total() const {
    std::vector<bool> is_counted(of_image_.size(), false);
    int64_t sum = 0;
    for (const auto& [of, cap] : caps_) {
      if (std::ranges::any_of(of, [&](int64_t i) { return is_counted[static_cast<size_t>(i)]; })) continue;
      for (const int64_t i : of) is_counted[static_cast<size_t>(i)] = true;
      sum += images(of);
    }
    for (size_t i = 0; i < of_image_.size(); ++i)
      if (!is_counted[i]) sum += of_image_[i];
    for (const auto& [of, cap] : caps_)
      if (of.size() == of_image_.size()) sum = std::min(sum, cap);
    return sum;
  }

  // Whether a step that leaves so much can drop anything.
  bool exceed(const Numbers& counts, const Budget& budget, const PromptLayout& prompt) const {
    const Numbers judged = judged_images(budget, prompt);
    switch (budget.pool) {
      case Pool::kRequest:
        return counts[0] < (!budget.images.empty() ? images(judged) : total());
      case Pool::kImage:
        return std::ranges::any_of(
            judged, [&](int64_t i) { return counts[static_cast<size_t>(i)] < image(static_cast<size_t>(i)); });
      case Pool::kCrop:
        for (size_t i = 0; i < crops_.size(); ++i)
          if (std::ranges::count(judged, crops_[i].image) > 0 && counts[i] < crop(i)) return true;
    }
    return false;
  }

  void lower(const Numbers& counts, const Budget& budget, const PromptLayout& prompt) {
    const Numbers judged = judged_images(budget, prompt);
    if (budget.pool == Pool::kRequest) {
      caps_.emplace_back(judged, std::min(counts[0], !budget.images.empty() ? images(judged) : total()));
      for (const int64_t i : judged) limit(static_cast<size_t>(i), counts[0]);
      return;
    }
    Numbers of_image = counts;
    if (budget.pool == Pool::kCrop) {
      of_image.assign(of_image_.size(), 0);
      for (size_t i = 0; i < crops_.size(); ++i) of_image[static_cast<size_t>(crops_[i].image)] += counts[i];
    }
    for (const int64_t i : judged) limit(static_cast<size_t>(i), of_image[static_cast<size_t>(i)]);
  }

 private:
  void limit(size_t i, int64_t most) { of_image_[i] = std::min(of_image_[i], most); }

  std::vector<CropFacts> crops_;
  Numbers of_image_;
  std::vector<std::pair<Numbers, int64_t>> caps_;  // what pools of several images came to
};

Numbers counts_of_amount(const Step& step, const PromptLayout& prompt, bool row_breaks_compete) {
  const Budget& budget = step.budget;
  check_amount(name_of_spec(step.policy), budget.amount);
  Numbers sizes, pinned;
  if (budget.pool == Pool::kCrop) {
    for (const CropFacts& crop : crops_of(prompt)) sizes.push_back(crop.size), pinned.push_back(crop.pinned);
  } else {
    for (size_t i = 0; i < prompt.images.size(); ++i)
      sizes.push_back(prompt.num_image_tokens(static_cast<int>(i), row_breaks_compete));
    pinned = prompt.pinned_per_image;
  }
  if (budget.pool == Pool::kRequest) {
    Numbers of_judged, pinned_of_judged;
    for (const int64_t i : judged_images(budget, prompt)) {
      of_judged.push_back(sizes[static_cast<size_t>(i)]);
      pinned_of_judged.push_back(pinned[static_cast<size_t>(i)]);
    }
    sizes = {sum_of(of_judged)};
    pinned = {sum_of(pinned_of_judged)};
  }
  // Pools of images that are not judged stay whole.
  const Numbers judged = judged_images(budget, prompt);
  const std::vector<CropFacts> crops = budget.pool == Pool::kCrop ? crops_of(prompt) : std::vector<CropFacts>();
  const auto is_judged = [&](size_t pool) {
    if (budget.pool == Pool::kRequest) return true;
    return std::ranges::count(judged, crops.empty() ? static_cast<int64_t>(pool) : crops[pool].image) > 0;
  };
  Numbers counts;
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (!is_judged(i)) {
      counts.push_back(sizes[i]);
      continue;
    }
    int64_t kept = kept_of(budget.amount, sizes[i], budget.rounding);
    if (budget.at_least_one && budget.amount.keep_ratio) kept = std::max(kept, std::min<int64_t>(1, sizes[i]));
    if (pinned[i] > kept)
      throw Error(std::string(name_of_spec(step.policy)) + ": the amount keeps " + std::to_string(kept) +
                  " tokens of a pool in which " + std::to_string(pinned[i]) + " are pinned");
    counts.push_back(kept);
  }
  return counts;
}

// A pipeline's amounts all refer to the unpruned pool, so a later one that is above what an earlier leaves is a
// mistake.
void check_amounts(const Bounds& there, const PlannedStep& step, const std::string& earlier) {
  const Budget& budget = step.step.budget;
  const auto refuse = [&](int64_t wanted, int64_t left, const std::string& where) {
    throw Error("pipeline: " + step.step.policy + " keeps " + std::to_string(wanted) + " tokens" + where + ", but " +
                earlier + " leaves " + std::to_string(left));
  };
  int64_t wanted = sum_of(step.counts);
  if (!budget.images.empty() && budget.pool == Pool::kRequest) wanted += there.total() - there.images(budget.images);
  if (wanted > there.total()) refuse(wanted, there.total(), "");
  if (budget.pool != Pool::kImage) return;
  for (size_t i = 0; i < step.counts.size(); ++i)
    if (step.counts[i] > there.image(i)) refuse(step.counts[i], there.image(i), " of image " + std::to_string(i));
}

void check_order(const Step& earlier, const Step& later) {
  if (later.at > earlier.at || (later.at == earlier.at && later.at.site != Site::kCache)) return;
  if (later.policy != earlier.policy)
    throw Error("pipeline: " + later.policy + " acts at " + to_string(later.at) + ", which comes before " +
                to_string(earlier.at) + " of " + earlier.policy);
  throw Error(later.policy + ": acts at " + to_string(later.at) + " out of the data's order");
}

}  // namespace

std::string_view name_of_spec(std::string_view spec) {
  return spec.substr(0, spec.find(':'));
}

void raise_to_floors(Numbers& counts, const Budget& budget, const PromptLayout& prompt, bool row_breaks_compete,
                     int64_t min_per_image) {
  const Numbers floors = protected_per_image(prompt, row_breaks_compete, min_per_image);
  switch (budget.pool) {
    case Pool::kRequest: {
      int64_t stay = 0;
      for (const int64_t i : judged_images(budget, prompt)) stay += floors[static_cast<size_t>(i)];
      counts[0] = std::max(counts[0], stay);
      return;
    }
    case Pool::kImage:
      for (size_t i = 0; i < counts.size(); ++i) counts[i] = std::max(counts[i], floors[i]);
      return;
    case Pool::kCrop:
      break;
  }
  // An image that would keep too few keeps more of its first crops.
  const std::vector<CropFacts> crops = crops_of(prompt);
  for (size_t first = 0, last = 0; first < crops.size(); first = last) {
    int64_t missing = min_per_image;
    for (; last < crops.size() && crops[last].image == crops[first].image; ++last)
      missing -= counts[last] = std::max(counts[last], crops[last].pinned);
    for (size_t i = first; i < last && missing > 0; ++i) {
      const int64_t more = std::min(missing, std::max<int64_t>(0, crops[i].size - counts[i]));
      counts[i] += more;
      missing -= more;
    }
  }
}

PlannedStep with_room(const PlannedStep& planned, int64_t generated) {
  PlannedStep step = planned;
  if (!step.step.makes_room) return step;
  step.counts[0] = std::max(step.least, step.counts[0] - (generated + step.step.every - 1));
  return step;
}

std::vector<PlannedStep> plan_steps(const PruningPolicy& policy, const ModelFacts& model, const PromptLayout& prompt) {
  const bool row_breaks_compete = policy.row_breaks_compete();
  const CommonOptions common = policy.common();
  const std::string who(name_of_spec(policy.spec()));
  if (common.min_per_image < 0) throw Error(who + ": min_per_image is below 0");
  if (common.min_tokens < 0) throw Error(who + ": min_tokens is below 0");
  check_images_in_order(prompt);
  const int64_t image_tokens = prompt.num_image_tokens(row_breaks_compete);
  if (image_tokens == 0 || image_tokens < common.min_tokens) return {};
  std::vector<PlannedStep> visited;
  Bounds bounds(prompt, row_breaks_compete);
  std::string counted_by;  // the policy whose amount was the latest
  for (Step& step : policy.steps(model, prompt)) {
    if (step.policy.empty()) step.policy = policy.spec();
    check_step(step, model);
    PlannedStep planned{.step = std::move(step), .counts = {}};
    const Budget& budget = planned.step.budget;
    const bool is_cache = planned.step.at.site == Site::kCache;
    if (has_amount(budget)) planned.counts = counts_of_amount(planned.step, prompt, row_breaks_compete);
    if (!budget.counts.empty()) planned.counts = budget.counts;
    bool acts = true;
    if (!planned.counts.empty()) {
      raise_to_floors(planned.counts, budget, prompt, row_breaks_compete, common.min_per_image);
      if (planned.step.makes_room) {
        std::vector<int64_t> least = {0};
        raise_to_floors(least, budget, prompt, row_breaks_compete, common.min_per_image);
        planned.least = least[0];
      }
      if (!is_cache && !budget.is_interim && !counted_by.empty() && counted_by != planned.step.policy)
        check_amounts(bounds, planned, counted_by);
      acts = planned.step.always_acts || planned.step.makes_room || bounds.exceed(planned.counts, budget, prompt);
      // A cache does not shorten the sequence, and what comes on top of a count is not known.
      if (!is_cache && !planned.step.adds_on_top) {
        bounds.lower(planned.counts, budget, prompt);
        if (!budget.is_interim) counted_by = planned.step.policy;
      }
    }
    if (acts) visited.push_back(std::move(planned));
  }
  for (size_t i = visited.size(); i-- > 0;) {
    if (!visited[i].step.only_reads) continue;
    const bool is_read_for =
        std::any_of(visited.begin() + static_cast<std::ptrdiff_t>(i) + 1, visited.end(), [&](const PlannedStep& later) {
          return !later.step.only_reads && later.step.policy == visited[i].step.policy;
        });
    if (!is_read_for) visited.erase(visited.begin() + static_cast<std::ptrdiff_t>(i));
  }
  for (size_t i = 1; i < visited.size(); ++i) check_order(visited[i - 1].step, visited[i].step);
  return visited;
}

}  // namespace espalier
