// SPDX-License-Identifier: Apache-2.0
#include "runtime/planned_rows.h"

#include <algorithm>
#include <numeric>
#include <vector>

namespace espalier {

namespace {

// Images whose tokens are counted together, and how many are left of them at most.
struct Part {
  std::vector<int> images;
  int64_t most;
};

std::vector<int> judged_images(const Budget& budget, size_t num_images) {
  if (!budget.images.empty()) return {budget.images.begin(), budget.images.end()};
  std::vector<int> all(num_images);
  std::iota(all.begin(), all.end(), 0);
  return all;
}

bool drops(const PlannedStep& step, Additions additions) {
  return !step.counts.empty() && !step.step.only_reads && !step.step.revives &&
         (!step.step.adds_on_top || additions == Additions::kLeftOut);
}

// What a step leaves of each image; nothing where it has one number for several.
std::vector<int64_t> counts_of_images(const PlannedStep& step, const PromptLayout& prompt) {
  if (step.step.budget.pool == Budget::Pool::kImage && step.counts.size() == prompt.images.size()) return step.counts;
  if (step.step.budget.pool != Budget::Pool::kCrop) return {};
  const std::vector<CropFacts> crops = crops_of(prompt);
  if (step.counts.size() != crops.size()) return {};
  std::vector<int64_t> counts(prompt.images.size(), 0);
  for (size_t i = 0; i < crops.size(); ++i) counts[static_cast<size_t>(crops[i].image)] += step.counts[i];
  return counts;
}

void apply(const PlannedStep& step, std::vector<Part>& parts, const PromptLayout& prompt) {
  const Budget& budget = step.step.budget;
  const size_t num_images = prompt.images.size();
  const std::vector<int64_t> of_images = counts_of_images(step, prompt);
  const std::vector<int> judged = judged_images(budget, num_images);
  const auto is_judged = [&](int image) { return std::ranges::find(judged, image) != judged.end(); };
  if (!of_images.empty()) {
    for (Part& part : parts) {
      if (!std::ranges::all_of(part.images, is_judged)) continue;
      int64_t most = 0;
      for (const int image : part.images) most += of_images[static_cast<size_t>(image)];
      part.most = std::min(part.most, most);
    }
    return;
  }
  // All that is judged becomes one part.
  Part together{{}, 0};
  std::vector<Part> others;
  for (Part& part : parts) {
    if (std::ranges::all_of(part.images, is_judged)) {
      together.images.insert(together.images.end(), part.images.begin(), part.images.end());
      together.most += part.most;
    } else {
      if (std::ranges::any_of(part.images, is_judged)) return;  // counted together with some that are not judged
      others.push_back(std::move(part));
    }
  }
  together.most = std::min(together.most, std::accumulate(step.counts.begin(), step.counts.end(), int64_t{0}));
  others.push_back(std::move(together));
  parts = std::move(others);
}

// Pools as far as parts tell them apart: of one number for several images, all of them together.
PlannedSelection selection_of(const std::string& policy, const std::vector<int64_t>& before,
                              const std::vector<Part>& behind, double rows) {
  PlannedSelection s{.policy = policy, .rows = rows};
  for (const int64_t n : before) s.candidates += static_cast<double>(n);
  const bool are_apart = behind.size() == before.size();
  for (size_t i = 0; i < behind.size(); ++i) {
    const double m = are_apart ? static_cast<double>(before[i]) : s.candidates;
    s.comparisons += m * m;
    s.picks += m * static_cast<double>(behind[i].most);
  }
  return s;
}

}  // namespace

int64_t PlannedRows::Cached::with_answer(int64_t new_tokens) const {
  return least ? std::max(behind_prefill, *least + new_tokens) : behind_prefill + new_tokens;
}

int64_t PlannedRows::most_cached(int64_t new_tokens) const {
  int64_t most = 0, sum = 0;
  for (size_t layer = 0; layer < cached.size(); ++layer) {
    most = std::max(most, sum + of_layer[layer] + new_tokens);
    sum += cached[layer].with_answer(new_tokens);
  }
  return std::max(most, sum);
}

PlannedRows planned_rows(const std::vector<PlannedStep>& steps, bool row_breaks_compete, const PromptLayout& prompt,
                         int num_layers, Additions additions) {
  std::vector<Part> parts;
  for (size_t image = 0; image < prompt.images.size(); ++image)
    parts.push_back({{static_cast<int>(image)}, prompt.num_image_tokens(static_cast<int>(image), row_breaks_compete)});
  const auto sum_of = [](const std::vector<Part>& list) {
    int64_t sum = 0;
    for (const Part& part : list) sum += part.most;
    return sum;
  };
  const auto left = [&] { return sum_of(parts); };
  const int64_t others = prompt.num_tokens - left();
  PlannedRows planned;
  const auto take_at_cache = [&](const PlannedStep& step) {
    std::vector<Part> of_cache = parts;
    if (drops(step, additions)) apply(step, of_cache, prompt);
    PlannedRows::Cached& cached = planned.cached[static_cast<size_t>(step.step.at.layer)];
    cached.behind_prefill = std::min(cached.behind_prefill, others + sum_of(of_cache));
    if (step.step.makes_room) cached.least = others + step.least;
    return of_cache;
  };
  const auto take = [&](const PlannedStep& step) {
    std::vector<int64_t> before;
    for (const Part& part : parts) before.push_back(part.most);
    const auto rows = static_cast<double>(others + left());
    if (step.step.at.site == Site::kCache) {
      planned.selections.push_back(selection_of(step.step.policy, before, take_at_cache(step), rows));
      return;
    }
    if (drops(step, additions)) apply(step, parts, prompt);
    planned.selections.push_back(selection_of(step.step.policy, before, parts, rows));
  };
  auto step = steps.begin();
  const auto take_while = [&](const auto& comes_before) {
    for (; step != steps.end() && comes_before(step->step.at); ++step) take(*step);
  };
  take_while([](const ActPoint& at) { return at.site == Site::kVisionOutput; });
  planned.projected = left();
  for (int layer = 0; layer < num_layers; ++layer) {
    take_while([&](const ActPoint& at) {
      if (at.site < Site::kBeforeLayer) return true;
      return at.site == Site::kBeforeLayer ? at.layer <= layer : at.layer < layer;
    });
    planned.of_layer.push_back(others + left());
    planned.cached.push_back({.behind_prefill = others + left()});
  }
  take_while([](const ActPoint&) { return true; });
  return planned;
}

}  // namespace espalier
