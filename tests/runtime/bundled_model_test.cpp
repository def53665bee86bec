// SPDX-License-Identifier: Apache-2.0
// The bundled model (models/demo) against Transformers on the prompts of examples/demo: a trained checkpoint of the
// published form, with its own tokenizer and template and with pictures from their files. Not how well it answers:
// `espalier eval` measures that.
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "base/sha256.h"
#include "recording/record.h"
#include "tests/runtime/arrays.h"
#include "tests/runtime/golden_case.h"
#include "tests/runtime/scratch_folder.h"
#include "tests/support/folders.h"

namespace espalier {
namespace {

std::filesystem::path bundled_model() {
  return test::source_folder() / "models" / "demo";
}

class BundledModel : public testing::TestWithParam<const char*> {
 protected:
  static const LoadedModel& model() {
    static const LoadedModel loaded = load_model(bundled_model(), {.dtype = ComputeDtype::kFloat32, .on_progress = {}});
    return loaded;
  }
};

TEST_P(BundledModel, AnswersAsTransformersDoes) {
  const test::GoldenCase golden(GetParam(), "demo");
  const test::Arrays expected = test::read_arrays(golden.tensors);
  const auto answer = golden.json.at("greedy_tokens").get<std::vector<int32_t>>();
  Request request = golden.request();
  request.options.max_new_tokens = static_cast<int64_t>(answer.size());
  const test::ScratchFolder scratch;
  const Result result = dump(model(), request, scratch.path() / golden.name, {}, {});
  EXPECT_EQ(result.prompt, golden.json.at("prompt").get<std::string>());
  EXPECT_EQ(result.token_ids, answer);
  const test::Arrays mine = test::read_arrays(scratch.path() / (golden.name + ".safetensors"));
  EXPECT_TRUE(mine.at("input_ids").equal(expected.at("input_ids")));
  const at::Tensor logits = mine.at("logits");
  const test::RelativeError error = test::relative_error(logits.slice(0, logits.size(0) - 1), expected.at("logits"));
  EXPECT_LT(error.max, 3e-4);
  EXPECT_LT(error.rms, 1e-4);
}

std::string name_of_case(const testing::TestParamInfo<const char*>& info) {
  return info.param;
}

INSTANTIATE_TEST_SUITE_P(Prompts, BundledModel,
                         testing::Values("shape", "colour", "spot", "words", "define", "count", "place", "colour_of"),
                         name_of_case);

// The goldens are of these weights, or they say nothing.
TEST(BundledModelFile, GoldensAreOfItsWeights) {
  Sha256 weights;
  weights.add(test::read_file(bundled_model() / "model.safetensors"));
  EXPECT_EQ(test::GoldenCase("shape", "demo").json.at("weights_sha256").get<std::string>(), weights.hex())
      << "run tests/golden/make_demo_goldens.py";
}

}  // namespace
}  // namespace espalier
