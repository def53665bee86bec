// SPDX-License-Identifier: Apache-2.0
// Smaller pictures through the whole runtime: position embeddings as Transformers interpolates them
// (tests/golden/llava15/resized), layouts and token counts of every family.
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include "espalier/error.h"
#include "runtime/generate.h"
#include "tests/runtime/arrays.h"
#include "tests/support/tensors.h"
#include "tests/support/tiny_llava.h"

namespace espalier {
namespace {

using test::tiny_llava;
using test::tiny_model;

TEST(ResizeRun, FeaturesOfOtherSizesAreTransformers) {
  const LoadedModel& model = tiny_llava();
  for (const char* size : {"14x14", "28x28", "28x42", "42x42"}) {
    SCOPED_TRACE(size);
    const test::Arrays golden =
        test::read_arrays(test::tiny_llava_folder() / "resized" / (std::string(size) + ".safetensors"));
    const VisionFeatures features =
        model.front_end.tower({}, golden.at("pixel_values"), model.config.vision.feature_layers, {});
    const at::Tensor projected = model.front_end.project(features.patches, {});
    EXPECT_TRUE(projected.allclose(golden.at("image_features"), 1e-4, 1e-5));
  }
}

ImagePlan plan_of(const LoadedModel& model, int width, int height, const std::string& policy = "none") {
  const ImagePlan own = model.front_end.plan(width, height);
  const ImageShape wanted = make_policy(policy)->wanted_shape(model.facts, own.shape);
  if (wanted.grid == own.shape.grid && wanted.tiling == own.shape.tiling) return own;
  return model.front_end.plan_as(width, height, wanted);
}

Result run(const LoadedModel& model, const std::string& policy, std::vector<std::shared_ptr<const Image>> pictures) {
  Message message{"user", {}};
  for (auto& picture : pictures) message.content.emplace_back(ImagePart{std::move(picture), false, {}});
  message.content.emplace_back(TextPart{"What is it?"});
  Request request{.prompt = Chat{{message}}, .policy = policy, .custom = {}, .options = {}, .trace = false};
  request.options.max_new_tokens = 3;
  request.options.greedy = true;
  return generate(model, request);
}

TEST(ResizeRun, TokensAreAboutTheWantedOnes) {
  const auto picture = [](int width, int height) { return test::picture(width, height, 1); };
  EXPECT_EQ(run(tiny_llava(), "resize:keep_ratio=1/4", {picture(60, 50), picture(30, 90)}).stats.image_tokens,
            (std::vector<int64_t>{4, 4}));
  EXPECT_EQ(run(tiny_llava(), "resize:num_kept=9", {picture(60, 50)}).stats.image_tokens, (std::vector<int64_t>{9}));
  EXPECT_EQ(run(tiny_llava(), "resize:keep_ratio=1", {picture(60, 50)}).token_ids,
            run(tiny_llava(), "none", {picture(60, 50)}).token_ids);
  // And what comes behind it counts in the smaller picture.
  EXPECT_EQ(run(tiny_llava(), "resize:num_kept=9 + fastv:num_kept=4", {picture(60, 50)}).kept.size(), 4U);
}

TEST(ResizeRun, AnyResolutionPicturesLoseTilesFirst) {
  const LoadedModel& model = tiny_model("llava_next_vicuna");
  const auto picture = test::picture(200, 200, 1);
  const ImagePlan whole = plan_of(model, 200, 200);
  const int64_t n = whole.shape.grid.rows;
  ASSERT_TRUE(whole.shape.tiling);
  const auto plan = [&](const std::string& spec) { return plan_of(model, 200, 200, spec); };
  const ImagePlan view = plan("resize:num_kept=" + std::to_string(n * n));
  EXPECT_EQ(view.shape.grid, whole.shape.grid);
  EXPECT_FALSE(view.shape.tiling);
  EXPECT_EQ(view.num_tokens(), n * n);
  const at::Tensor all = model.front_end.pixels(whole, *picture), one = model.front_end.pixels(view, *picture);
  EXPECT_EQ(one.size(0), 1);
  EXPECT_TRUE(one[0].equal(all[0]));  // the same full view
  const ImagePlan small = plan("resize:num_kept=4");
  EXPECT_EQ(small.num_tokens(), 4);
  for (const char* spec : {"resize:keep_ratio=1/2", "resize:keep_ratio=1/5", "resize:num_kept=4"})
    EXPECT_EQ(run(model, spec, {picture}).stats.image_tokens.at(0), plan(spec).num_tokens()) << spec;
}

TEST(ResizeRun, DynamicPicturesGetFewerPixels) {
  const LoadedModel& model = tiny_model("qwen25vl");
  const int64_t whole = plan_of(model, 300, 200).num_tokens();
  for (const auto& [spec, share] : {std::pair("resize:keep_ratio=1/2", 0.5), {"resize:keep_ratio=1/4", 0.25}}) {
    const ImagePlan plan = plan_of(model, 300, 200, spec);
    EXPECT_LE(static_cast<double>(plan.num_tokens()), share * static_cast<double>(whole) + 1);
    EXPECT_GE(static_cast<double>(plan.num_tokens()), 0.6 * share * static_cast<double>(whole));
    EXPECT_EQ(run(model, spec, {test::picture(300, 200, 1)}).stats.image_tokens.at(0), plan.num_tokens());
  }
}

}  // namespace
}  // namespace espalier
