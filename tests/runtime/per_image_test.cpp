// SPDX-License-Identifier: Apache-2.0
// Policies of single pictures: each judges its own pictures' tokens as it would in a request where it judges all.
#include "espalier/policies/per_image.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "espalier/engine.h"
#include "espalier/error.h"
#include "espalier/policies/table.h"
#include "espalier/pruning.h"
#include "tests/runtime/scratch_folder.h"
#include "tests/support/tiny_llava.h"

namespace espalier {
namespace {

const Engine& engine() {
  static const Engine e = Engine::load(test::tiny_llava_folder(), {.dtype = ComputeDtype::kFloat32});
  return e;
}

Request request_of(PolicyPtr policy) {
  Request request;
  request.prompt = test::in_context_prompt(2);  // three pictures of 16 tokens
  request.custom = std::move(policy);
  request.options.max_new_tokens = 4;
  request.options.ignore_eos = true;
  return request;
}

std::vector<int64_t> left(PolicyPtr policy) {
  return engine().generate(request_of(std::move(policy))).stats.image_tokens_per_layer.back();
}

PolicyPtr of_images(const char* others, const char* own, std::vector<int64_t> images) {
  return per_image(make_policy(others), {{make_policy(own), std::move(images)}});
}

TEST(PerImage, EachHasItsShare) {
  EXPECT_EQ(left(of_images("none", "divprune:keep_ratio=1/4", {1})), (std::vector<int64_t>{16, 4, 16}));
  EXPECT_EQ(left(of_images("fastv:keep_ratio=1/2,layer=2", "none", {0, 2})), (std::vector<int64_t>{16, 8, 16}));
  const PolicyPtr three =
      per_image(make_policy("uniform:keep_ratio=1/8"),
                {{make_policy("divprune:keep_ratio=1/4"), {2}}, {make_policy("fastv:keep_ratio=1/2,layer=3"), {0}}});
  EXPECT_EQ(left(three), (std::vector<int64_t>{8, 2, 4}));
}

// Policies whose verdict about a picture depends on that picture alone keep the same of it, whoever judges the others.
TEST(PerImage, KeepsWhatThePolicyKeeps) {
  const auto kept = [](PolicyPtr policy, int image) {
    const Result result = engine().generate(request_of(std::move(policy)));
    std::vector<int64_t> of_image;
    const Result whole = engine().generate(request_of(make_policy("none")));
    for (size_t i = 0; i < whole.kept.size(); ++i)
      if (static_cast<int>(i) / 16 == image && std::ranges::binary_search(result.kept, whole.kept[i]))
        of_image.push_back(whole.kept[i]);
    return of_image;
  };
  for (const char* spec : {"visionzip:num_kept=5", "uniform:keep_ratio=1/4"}) {
    SCOPED_TRACE(spec);
    const std::vector<int64_t> everywhere = kept(make_policy(spec), 1);
    EXPECT_FALSE(everywhere.empty());
    EXPECT_EQ(kept(of_images("none", spec, {1}), 1), everywhere);
    EXPECT_EQ(kept(of_images("none", spec, {1}), 0).size(), 16U);
  }
}

// Every policy, for the middle picture: refused before anything runs, or the others stay whole.
TEST(PerImage, LeavesTheOthersAlone) {
  int served = 0;
  for (const PolicyEntry& entry : policy_table())
    for (const PolicyExample& example : entry.examples) {
      if (example.spec.find(".json") != std::string_view::npos) continue;
      SCOPED_TRACE(std::string(example.spec));
      try {
        const std::vector<int64_t> tokens = left(of_images("none", std::string(example.spec).c_str(), {1}));
        EXPECT_EQ(tokens[0], 16);
        EXPECT_EQ(tokens[2], 16);
        EXPECT_LE(tokens[1], 16);
        ++served;
      } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find("policy of one image"), std::string::npos) << error.what();
      }
    }
  EXPECT_GE(served, 10);
}

TEST(PerImage, RefusesWhatItCannotDivide) {
  const auto says = [](const PolicyPtr& policy, const char* words) {
    test::expect_says(test::message_of<Error>([&] { engine().generate(request_of(policy)); }), {words});
  };
  says(of_images("none", "catp:keep_ratio=1/3", {0}), "whole request");
  says(of_images("catp:keep_ratio=1/3", "none", {0}), "whole request");
  says(of_images("none", "resize:keep_ratio=1/2", {0}), "before they are prepared");
  says(of_images("none", "uniform:keep_ratio=1/2", {3}), "no image 3");
  says(per_image(make_policy("none"), {{make_policy("uniform:keep_ratio=1/2"), {0}}, {make_policy("none"), {0}}}),
       "has two");
  EXPECT_THROW(of_images("none", "uniform:keep_ratio=1/2,positions=compact", {0}), Error);
}

}  // namespace
}  // namespace espalier
