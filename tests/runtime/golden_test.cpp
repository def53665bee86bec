// SPDX-License-Identifier: Apache-2.0
// The whole model against Transformers on a tiny random checkpoint (tests/golden/make_goldens.py), tensor by tensor.
// Limits are those of the oracle's compare.py: float32, eager against sdpa inside Transformers differ by 1e-5.
#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "runtime/record.h"
#include "tests/runtime/arrays.h"
#include "tests/runtime/golden_case.h"
#include "tests/runtime/scratch_folder.h"
#include "tests/support/tiny_llava.h"

namespace espalier {
namespace {

using test::Arrays;

class GoldenTest : public testing::TestWithParam<const char*> {
 protected:
  // What a dump of the request holds, and its result.
  Arrays dumped(const Request& request, const std::filesystem::path& pixel_values) {
    result_ = dump(test::tiny_llava(), request, scratch_.path() / golden_.name, pixel_values, {});
    return test::read_arrays(scratch_.path() / (golden_.name + ".safetensors"));
  }

  const test::GoldenCase golden_{GetParam()};
  const Arrays expected_ = test::read_arrays(golden_.tensors);
  const bool has_images_ = expected_.contains("pixel_values");
  Result result_;

 private:
  test::ScratchFolder scratch_;
};

// Golden pixels go in, so that what is compared is the model; the picture pipeline has its own tests.
TEST_P(GoldenTest, EveryTensorEqualsTransformers) {
  const Arrays mine = dumped(golden_.request(), has_images_ ? golden_.tensors : std::filesystem::path());
  EXPECT_EQ(result_.prompt, golden_.json.at("prompt").get<std::string>());
  int compared = 0;
  for (const auto& [key, expected] : expected_) {
    const auto own = mine.find(key == "logits_tail" ? "logits" : key);
    if (own == mine.end()) continue;  // margins and attention rows are for other tests
    at::Tensor actual = own->second;
    if (key == "logits_tail") actual = actual.slice(0, actual.size(0) - expected.size(0));
    ASSERT_EQ(actual.sizes(), expected.sizes()) << key;
    ++compared;
    if (expected.scalar_type() == at::kLong) {
      EXPECT_TRUE(actual.equal(expected)) << key;
      continue;
    }
    const test::RelativeError error = test::relative_error(actual, expected);
    EXPECT_LT(error.max, 3e-4) << key;
    EXPECT_LT(error.rms, 1e-4) << key;
  }
  EXPECT_GE(compared, has_images_ ? 14 : 12);
}

// The picture pipeline in front: pixels and features within the limits that the two reference backends leave.
TEST_P(GoldenTest, FeaturesFromThePicturesThemselves) {
  if (!has_images_) GTEST_SKIP() << "no picture";
  Request request = golden_.request();
  request.options.max_new_tokens = 1;
  const Arrays mine = dumped(request, {});
  const test::RelativeError features = test::relative_error(mine.at("image_features"), expected_.at("image_features"));
  EXPECT_LT(features.max, 0.15);
  EXPECT_LT(features.rms, 0.03);
  const double grey_level = 1 / 255.0 / 0.2613;
  EXPECT_LE((mine.at("pixel_values") - expected_.at("pixel_values")).abs().max().item<double>(), 1.5 * grey_level);
}

INSTANTIATE_TEST_SUITE_P(Llava15, GoldenTest,
                         testing::Values("single", "small_square", "pair_raw", "icl4", "wide", "tall", "text_only"),
                         [](const auto& param) { return std::string(param.param); });

}  // namespace
}  // namespace espalier
