// SPDX-License-Identifier: Apache-2.0
// The whole model against Transformers on a tiny random checkpoint (tests/golden/make_goldens.py), tensor by tensor.
// Limits are those of the oracle's compare.py: float32, eager against sdpa inside Transformers differ by 1e-5.
#include <ATen/ops/empty.h>
#include <gtest/gtest.h>

#include <unistd.h>
#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "io/json_file.h"
#include "io/safetensors.h"
#include "runtime/record.h"
#include "tests/support/tensors.h"
#include "tests/support/tiny_llava.h"

namespace espalier {
namespace {

using test::golden_folder;

at::Tensor tensor_of(const TensorView& view) {
  const bool is_int = view.dtype == Dtype::kI64;
  EXPECT_TRUE(is_int || view.dtype == Dtype::kF32) << name_of(view.dtype);
  at::Tensor t = at::empty(view.shape, is_int ? at::kLong : at::kFloat);
  std::memcpy(t.data_ptr(), view.bytes.data(), view.bytes.size());
  return t;
}

struct RelativeError {
  double max, rms;
};

// Largest and rms difference, relative to the golden's rms.
RelativeError relative_error(const at::Tensor& mine, const at::Tensor& golden) {
  const at::Tensor g = golden.to(at::kDouble), d = (mine.to(at::kDouble) - g).abs();
  const double rms = std::max(g.pow(2).mean().sqrt().item<double>(), 1e-12);
  return {d.max().item<double>() / rms, d.pow(2).mean().sqrt().item<double>() / rms};
}

Prompt prompt_of(const std::filesystem::path& folder, const nlohmann::json& json) {
  std::vector<ImagePart> images;
  for (const auto& file : json.at("image_files"))
    images.push_back(
        {.image = std::make_shared<const Image>(read_image(folder / file.get<std::string>())), .pins = {}});
  if (!json.contains("messages") || json.at("messages").is_null()) return RawPrompt{json.at("prompt"), images, {}};
  Chat chat;
  size_t next = 0;
  for (const auto& message : json.at("messages")) {
    Message m{message.at("role"), {}};
    for (const auto& part : message.at("content")) {
      if (part.at("type") == "image") {
        m.content.emplace_back(images.at(next++));
      } else {
        m.content.emplace_back(TextPart{part.at("text")});
      }
    }
    chat.messages.push_back(std::move(m));
  }
  return chat;
}

class GoldenTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    cases_ = golden_folder() / "llava15" / "cases";
    scratch_ = std::filesystem::temp_directory_path() / ("espalier_golden_" + std::to_string(getpid()));
    std::filesystem::create_directories(scratch_);
  }
  void TearDown() override { std::filesystem::remove_all(scratch_); }

  std::filesystem::path cases_, scratch_;
};

// Golden pixels go in, so that what is compared is the model; the picture pipeline has its own tests.
TEST_P(GoldenTest, EveryTensorEqualsTransformers) {
  const std::string name = GetParam();
  const nlohmann::json json = read_json_file(cases_ / (name + ".json"));
  const SafetensorsFile golden = SafetensorsFile::open(cases_ / (name + ".safetensors"));
  Request request{.prompt = prompt_of(cases_, json), .policy = "none", .custom = {}, .options = {}, .trace = false};
  request.options.max_new_tokens = 16;
  request.options.greedy = true;
  request.options.ignore_eos = true;
  const bool has_images = golden.tensors().contains("pixel_values");
  const Result result = dump(test::tiny_llava(), request, scratch_ / name,
                             has_images ? cases_ / (name + ".safetensors") : std::filesystem::path(), {});
  EXPECT_EQ(result.prompt, json.at("prompt").get<std::string>());

  const SafetensorsFile mine = SafetensorsFile::open(scratch_ / (name + ".safetensors"));
  int compared = 0;
  for (const auto& [key, view] : golden.tensors()) {
    const std::string own_key = key == "logits_tail" ? "logits" : key;
    if (!mine.tensors().contains(own_key)) continue;  // margins and attention rows are for other tests
    const at::Tensor expected = tensor_of(view);
    at::Tensor actual = tensor_of(mine.tensors().at(own_key));
    if (key == "logits_tail") actual = actual.slice(0, actual.size(0) - expected.size(0));
    ASSERT_EQ(actual.sizes(), expected.sizes()) << key;
    ++compared;
    if (expected.scalar_type() == at::kLong) {
      EXPECT_TRUE(actual.equal(expected)) << key;
      continue;
    }
    const RelativeError error = relative_error(actual, expected);
    EXPECT_LT(error.max, 3e-4) << key;
    EXPECT_LT(error.rms, 1e-4) << key;
  }
  EXPECT_GE(compared, has_images ? 14 : 12);
}

// The picture pipeline in front: pixels within the limits of the two reference backends, and the same greedy tokens
// wherever the golden's margin is not smaller than what a grey level moves.
TEST_P(GoldenTest, AnswersFromThePicturesThemselves) {
  const std::string name = GetParam();
  const nlohmann::json json = read_json_file(cases_ / (name + ".json"));
  const SafetensorsFile golden = SafetensorsFile::open(cases_ / (name + ".safetensors"));
  if (!golden.tensors().contains("pixel_values")) GTEST_SKIP() << "no picture";
  Request request{.prompt = prompt_of(cases_, json), .policy = "none", .custom = {}, .options = {}, .trace = false};
  request.options.max_new_tokens = 1;
  dump(test::tiny_llava(), request, scratch_ / name, {}, {});
  const SafetensorsFile mine = SafetensorsFile::open(scratch_ / (name + ".safetensors"));
  const RelativeError features =
      relative_error(tensor_of(mine.tensors().at("image_features")), tensor_of(golden.tensors().at("image_features")));
  EXPECT_LT(features.max, 0.15);
  EXPECT_LT(features.rms, 0.03);
  const at::Tensor pixels = tensor_of(mine.tensors().at("pixel_values")),
                   reference = tensor_of(golden.tensors().at("pixel_values"));
  const double grey_level = 1 / 255.0 / 0.2613;
  EXPECT_LE((pixels - reference).abs().max().item<double>(), 1.5 * grey_level);
}

INSTANTIATE_TEST_SUITE_P(Llava15, GoldenTest,
                         testing::Values("single", "small_square", "pair_raw", "icl4", "wide", "tall", "text_only"),
                         [](const auto& param) { return std::string(param.param); });

}  // namespace
}  // namespace espalier
