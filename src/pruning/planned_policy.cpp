// SPDX-License-Identifier: Apache-2.0
#include "pruning/planned_policy.h"

#include "espalier/error.h"

namespace espalier {

namespace {

// Blocks of image tokens are cut by number, so the tokens of an image must follow each other.
void check_images_in_order(const PromptLayout& prompt) {
  int previous = 0;
  for (const Segment& s : prompt.segments) {
    if (s.kind == Segment::Kind::kText) continue;
    if (s.image < previous)
      throw Error("layout: tokens of image " + std::to_string(s.image) + " stand behind those of image " +
                  std::to_string(previous));
    previous = s.image;
  }
}

}  // namespace

PlannedPolicy::PlannedPolicy(std::string_view name, const CommonOptions& common, bool row_breaks_compete)
    : name_(name), common_(common), row_breaks_compete_(row_breaks_compete) {
  if (common.min_per_image < 0) throw Error(std::string(name) + ": min_per_image is below 0");
  if (common.min_tokens < 0) throw Error(std::string(name) + ": min_tokens is below 0");
}

std::vector<ActPoint> PlannedPolicy::points(const ModelFacts& model, const PromptLayout& prompt) const {
  check_images_in_order(prompt);
  std::vector<ActPoint> points;
  if (prompt.num_image_tokens(row_breaks_compete_) == 0) return points;
  for (const PlannedPoint& planned : plan(model, prompt))
    if (planned.may_drop) points.push_back(planned.point);
  return points;
}

PoolRule PlannedPolicy::pool_rule(const Amount& amount) const {
  return {.policy = name_,
          .amount = amount,
          .with_row_breaks = row_breaks_compete_,
          .min_per_image = common_.min_per_image};
}

int64_t PlannedPolicy::num_image_tokens(const PromptLayout& prompt, int image) const {
  return prompt.num_image_tokens(image, row_breaks_compete_);
}

}  // namespace espalier
