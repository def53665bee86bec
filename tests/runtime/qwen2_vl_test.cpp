// SPDX-License-Identifier: Apache-2.0
// Qwen2-VL beyond its goldens: what it does not share with Qwen2.5-VL (qwen_test.cpp), and that what it shares is wired
// to it: positions, the checkpoint's sampling defaults, forms on disk, policies.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "espalier/error.h"
#include "recording/record.h"
#include "runtime/generate.h"
#include "runtime/prompt_packer.h"
#include "tests/runtime/derived_checkpoint.h"
#include "tests/runtime/golden_case.h"
#include "tests/support/tensors.h"

namespace espalier {
namespace {

using Json = nlohmann::json;
using test::Arrays;
using test::GoldenCase;

const LoadedModel& model() {
  return test::tiny_model("qwen2vl");
}

TEST(Qwen2Vl, FactsOfTheModel) {
  EXPECT_FALSE(model().facts.has_class_token);
  EXPECT_TRUE(model().facts.has_mrope);
  EXPECT_EQ(model().facts.vision_hidden_size, 4 * 32);  // what the projector reads: four patches a token
  EXPECT_EQ(model().facts.vision_feature_layer, 2);
}

TEST(Qwen2Vl, DecodingGoesOnWhereTransformersDoes) {
  for (const char* name : {"single", "turns"}) {
    SCOPED_TRACE(name);
    const GoldenCase golden(name, "qwen2vl");
    const PackedPrompt packed = pack_prompt(model(), golden.prompt(), 1);
    const Arrays expected = test::read_arrays(golden.tensors);
    EXPECT_TRUE(packed.layout->position_id.equal(expected.at("position_ids")));
    EXPECT_EQ(packed.next_position - packed.layout->num_tokens, expected.at("rope_delta").item<int64_t>());
  }
}

TEST(Qwen2Vl, DefaultsPenaliseRepetition) {
  int changed = 0;  // answers that the penalty makes another
  for (const char* name : {"single", "turns", "text_only"}) {
    SCOPED_TRACE(name);
    const GoldenCase golden(name, "qwen2vl");
    Request request = golden.request();
    request.options.greedy = false;
    const Result result = generate(model(), request);
    const at::Tensor expected = test::read_arrays(golden.tensors).at("penalised_tokens");
    EXPECT_EQ(std::vector<int64_t>(result.token_ids.begin(), result.token_ids.end()),
              std::vector<int64_t>(expected.const_data_ptr<int64_t>(),
                                   expected.const_data_ptr<int64_t>() + expected.numel()));
    changed += result.token_ids != golden.json.at("greedy_tokens").get<std::vector<int32_t>>();
  }
  EXPECT_GE(changed, 1);
}

Arrays dumped(const std::filesystem::path& folder) {
  const test::ScratchFolder out;
  const LoadedModel loaded = load_model(folder, {.dtype = ComputeDtype::kFloat32, .on_progress = {}});
  dump(loaded, GoldenCase("turns", "qwen2vl").request(), out.path() / "run", {}, {});
  return test::read_arrays(out.path() / "run.safetensors");
}

// As newer releases save it: other names of tensors, the decoder in text_config.
TEST(Qwen2Vl, NewNamesAndNestedConfig) {
  test::DerivedCheckpoint checkpoint("qwen2vl");
  checkpoint.rename([](const std::string& old) {
    if (old.starts_with("model.")) return "model.language_model." + old.substr(6);
    return old.starts_with("visual.") ? "model." + old : old;
  });
  checkpoint.write();
  const Json flat = Json::parse(test::read_file(checkpoint.path() / "config.json"));
  Json text = {{"model_type", "qwen2_vl_text"}, {"dtype", "bfloat16"}}, patch = {{"torch_dtype", nullptr}};
  for (const char* key : {"hidden_size", "intermediate_size", "max_position_embeddings", "num_attention_heads",
                          "num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "hidden_act", "vocab_size"}) {
    text[key] = flat.at(key);
    patch[key] = nullptr;
  }
  text["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 1e6}, {"mrope_section", {1, 1, 2}}};
  patch["rope_scaling"] = patch["rope_theta"] = nullptr;
  patch["text_config"] = text;
  patch["vision_config"] = {{"in_chans", nullptr}, {"in_channels", 3}, {"model_type", "qwen2_vl_vision"}};
  checkpoint.patch("config.json", patch);
  const Arrays mine = dumped(checkpoint.path()), expected = dumped(test::golden_folder() / "qwen2vl");
  for (const char* name : {"pixel_values", "image_features", "hidden.8", "logits"})
    test::expect_same(mine.at(name), expected.at(name), name);
}

TEST(Qwen2Vl, RefusesWhatDoesNotFit) {
  const auto refusal = [](const char* file, const Json& patch) {
    test::DerivedCheckpoint checkpoint("qwen2vl");
    checkpoint.patch(file, patch);
    checkpoint.write();
    return test::message_of<Error>([&] { load_model(checkpoint.path(), EngineOptions{}); });
  };
  test::expect_says(refusal("config.json", {{"model_type", "qwen2_5_vl"}}), {"config.json", "out_hidden_size"});
  test::expect_says(refusal("config.json", {{"vision_config", {{"mlp_ratio", 3}}}}),
                    {"vision.blocks.0.mlp.fc1.weight", "[96, 32]", "[64, 32]"});
  test::expect_says(refusal("preprocessor_config.json", {{"patch_size", 16}}),
                    {"preprocessor_config.json", "patch_size: 16", "has 14"});
}

}  // namespace
}  // namespace espalier
