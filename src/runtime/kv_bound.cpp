// SPDX-License-Identifier: Apache-2.0
#include "runtime/kv_bound.h"

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

void apply(const PlannedStep& step, std::vector<Part>& parts, size_t num_images) {
  const Budget& budget = step.step.budget;
  if (step.counts.empty() || step.step.adds_on_top || step.step.only_reads || step.step.at.site == Site::kCache) return;
  const bool is_per_image = budget.pool == Budget::Pool::kImage && step.counts.size() == num_images;
  const std::vector<int> judged = judged_images(budget, num_images);
  const auto is_judged = [&](int image) { return std::ranges::find(judged, image) != judged.end(); };
  if (is_per_image) {
    for (Part& part : parts) {
      if (!std::ranges::all_of(part.images, is_judged)) continue;
      int64_t most = 0;
      for (const int image : part.images) most += step.counts[static_cast<size_t>(image)];
      part.most = std::min(part.most, most);
    }
    return;
  }
  // One number, or one for each crop: all that is judged becomes one part.
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

}  // namespace

int64_t most_prompt_rows(const PolicyWalk& walk, const PromptLayout& prompt, int num_layers) {
  const bool row_breaks_compete = walk.policy().row_breaks_compete();
  std::vector<Part> parts;
  for (size_t image = 0; image < prompt.images.size(); ++image)
    parts.push_back({{static_cast<int>(image)}, prompt.num_image_tokens(static_cast<int>(image), row_breaks_compete)});
  const auto left = [&] {
    int64_t sum = 0;
    for (const Part& part : parts) sum += part.most;
    return sum;
  };
  const int64_t others = prompt.num_tokens - left();
  int64_t rows = 0;
  auto step = walk.steps().begin();
  for (int layer = 0; layer < num_layers; ++layer) {
    const auto comes_before = [&](const ActPoint& at) {
      if (at.site < Site::kBeforeLayer) return true;
      return at.site == Site::kAfterAttention ? at.layer < layer : at.layer <= layer;
    };
    for (; step != walk.steps().end() && comes_before(step->step.at); ++step) apply(*step, parts, prompt.images.size());
    rows += others + left();
  }
  return rows;
}

}  // namespace espalier
