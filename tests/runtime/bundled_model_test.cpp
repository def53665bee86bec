// SPDX-License-Identifier: Apache-2.0
// The bundled models (models/demo, models/crowded) against Transformers on the prompts of examples/demo and
// examples/crowded: trained checkpoints of the published form, with their own tokenizers and templates and with
// pictures from their files. Not how well they answer: `espalier eval` measures that.
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
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

std::filesystem::path bundled_model(const std::string& name) {
  return test::source_folder() / "models" / name;
}

const LoadedModel& loaded(const std::string& name) {
  static std::map<std::string, LoadedModel> models;
  if (!models.contains(name))
    models.emplace(name, load_model(bundled_model(name), {.dtype = ComputeDtype::kFloat32, .on_progress = {}}));
  return models.at(name);
}

struct Prompt {
  const char *model, *name;
};

class BundledModel : public testing::TestWithParam<Prompt> {};

TEST_P(BundledModel, AnswersAsTransformersDoes) {
  const test::GoldenCase golden(GetParam().name, GetParam().model);
  const test::Arrays expected = test::read_arrays(golden.tensors);
  const auto answer = golden.json.at("greedy_tokens").get<std::vector<int32_t>>();
  Request request = golden.request();
  request.options.max_new_tokens = static_cast<int64_t>(answer.size());
  const test::ScratchFolder scratch;
  const Result result = dump(loaded(GetParam().model), request, scratch.path() / golden.name, {}, {});
  EXPECT_EQ(result.prompt, golden.json.at("prompt").get<std::string>());
  EXPECT_EQ(result.token_ids, answer);
  const test::Arrays mine = test::read_arrays(scratch.path() / (golden.name + ".safetensors"));
  EXPECT_TRUE(mine.at("input_ids").equal(expected.at("input_ids")));
  const at::Tensor logits = mine.at("logits");
  const test::RelativeError error = test::relative_error(logits.slice(0, logits.size(0) - 1), expected.at("logits"));
  EXPECT_LT(error.max, 3e-4);
  EXPECT_LT(error.rms, 1e-4);
}

std::string name_of_case(const testing::TestParamInfo<Prompt>& info) {
  return std::string(info.param.model) + "_" + info.param.name;
}

INSTANTIATE_TEST_SUITE_P(Prompts, BundledModel,
                         testing::Values(Prompt{"demo", "shape"}, Prompt{"demo", "colour"}, Prompt{"demo", "spot"},
                                         Prompt{"demo", "words"}, Prompt{"demo", "define"}, Prompt{"demo", "count"},
                                         Prompt{"demo", "place"}, Prompt{"demo", "colour_of"},
                                         Prompt{"crowded", "spot"}, Prompt{"crowded", "meant"},
                                         Prompt{"crowded", "changed"}, Prompt{"crowded", "before"}),
                         name_of_case);

// The goldens are of these weights, or they say nothing.
TEST(BundledModelFile, GoldensAreOfItsWeights) {
  for (const auto& [model, prompt] : {Prompt{"demo", "shape"}, Prompt{"crowded", "spot"}}) {
    Sha256 weights;
    weights.add(test::read_file(bundled_model(model) / "model.safetensors"));
    EXPECT_EQ(test::GoldenCase(prompt, model).json.at("weights_sha256").get<std::string>(), weights.hex())
        << "run tests/golden/make_demo_goldens.py";
  }
}

}  // namespace
}  // namespace espalier
