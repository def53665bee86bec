// SPDX-License-Identifier: Apache-2.0
// config.json of Qwen2-VL: where it differs from Qwen2.5-VL's (tests/families/qwen25_vl_config_test.cpp has the rest,
// which the two share).
#include "families/qwen2_vl/qwen2_vl.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>

#include "espalier/error.h"
#include "families/families.h"
#include "families/qwen_vl/qwen_vl.h"
#include "model/config_section.h"

namespace espalier {
namespace {

using Json = nlohmann::json;

const std::string kFile = "folder/config.json";  // sections only refer to it

QwenVlConfig parse(const Json& json) {
  return read_qwen2_vl_config(Section(json, kFile));
}

// What the hub has for Qwen/Qwen2-VL-2B-Instruct.
Json qwen_2b() {
  return Json::parse(R"({
    "architectures": ["Qwen2VLForConditionalGeneration"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
    "vision_start_token_id": 151652, "vision_end_token_id": 151653, "vision_token_id": 151654, "image_token_id": 151655,
    "video_token_id": 151656, "hidden_act": "silu", "hidden_size": 1536, "initializer_range": 0.02, "intermediate_size": 8960,
    "max_position_embeddings": 32768, "max_window_layers": 28, "model_type": "qwen2_vl", "num_attention_heads": 12,
    "num_hidden_layers": 28, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768,
    "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.41.2", "use_cache": true,
    "use_sliding_window": false,
    "vision_config": {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "in_chans": 3, "hidden_size": 1536,
                      "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2},
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "vocab_size": 151936})");
}

TEST(Qwen2VlConfig, Published) {
  const QwenVlConfig c = parse(qwen_2b());
  EXPECT_EQ(c.vision.hidden_size, 1280);
  EXPECT_EQ(c.vision.intermediate_size, 5120);
  EXPECT_EQ(c.vision.num_layers, 32);
  EXPECT_EQ(c.vision.num_heads, 16);
  EXPECT_EQ(c.vision.patch_size, 14);
  EXPECT_EQ(c.vision.merge_size, 2);
  EXPECT_EQ(c.vision.temporal_patch_size, 2);
  EXPECT_EQ(c.vision.window_size, 0);
  EXPECT_EQ(c.vision.norm, PatchVitConfig::Norm::kLayer);
  EXPECT_EQ(c.vision.mlp, PatchVitConfig::Mlp::kPlain);
  EXPECT_EQ(c.vision.activation, Activation::kQuickGelu);
  EXPECT_EQ(c.decoder.hidden_size, 1536);
  EXPECT_EQ(c.decoder.head_dim, 128);
  EXPECT_EQ(c.decoder.num_kv_heads, 2);
  EXPECT_EQ(c.decoder.mrope_section, (std::vector<int64_t>{16, 24, 24}));
  EXPECT_TRUE(c.decoder.qkv_bias);
  EXPECT_TRUE(c.decoder.tied_head);
  EXPECT_EQ(c.image_token_id, 151655);
  EXPECT_EQ(c.dtype, "bfloat16");
}

TEST(Qwen2VlConfig, ClassDefaults) {
  const QwenVlConfig c = parse({{"model_type", "qwen2_vl"}, {"vision_config", {{"hidden_size", 8192}}}});
  EXPECT_EQ(c.vision.hidden_size, 1280);
  EXPECT_EQ(c.vision.intermediate_size, 5120);
  EXPECT_EQ(c.vision.num_layers, 32);
  EXPECT_EQ(c.decoder.hidden_size, 8192);
  EXPECT_EQ(c.decoder.num_layers, 80);
}

TEST(Qwen2VlConfig, NamesAllWeights) {
  std::vector<std::string> names;
  for (const NamedShape& weight : weight_names(parse_config(qwen_2b().dump(), "config.json")))
    names.push_back(weight.name);
  EXPECT_EQ(names.size(), 1u + 32 * 12 + 2 + 4 + 1 + 28 * 12 + 1);  // tied: no head
  const auto has = [&](const char* name) { return std::ranges::count(names, name) == 1; };
  EXPECT_TRUE(has("vision.blocks.31.norm2.bias"));
  EXPECT_TRUE(has("vision.blocks.31.mlp.fc1.weight"));
  EXPECT_TRUE(has("vision.blocks.31.mlp.fc2.bias"));
  EXPECT_TRUE(has("vision.merger.ln_q.bias"));
  EXPECT_FALSE(has("vision.blocks.31.mlp.gate_proj.weight"));
  EXPECT_FALSE(has("lm_head.weight"));
}

TEST(Qwen2VlConfig, RefusesWithFileAndField) {
  const auto refusal = [](const Json& patch) {
    Json json = qwen_2b();
    json.merge_patch(patch);
    try {
      parse(json);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  const std::pair<Json, const char*> cases[] = {
      {{{"vision_config", {{"model_type", "qwen2_5_vl"}}}}, "vision_config.model_type\": expected qwen2_vl"},
      {{{"vision_config", {{"num_heads", 7}}}}, "vision_config.num_heads\": 7 heads of embed_dim 1280"},
      {{{"vision_config", {{"mlp_ratio", 0}}}}, "vision_config.mlp_ratio\": expected an integer from 1"},
      {{{"vision_config", {{"hidden_act", "swish"}}}}, "vision_config.hidden_act\": unknown activation"},
      {{{"vision_config", {{"hidden_size", 1280}}}}, "hidden_size\": 1280 is not the decoder's hidden_size 1536"}};
  for (const auto& [patch, message] : cases)
    EXPECT_PRED_FORMAT2(testing::IsSubstring, message, refusal(patch)) << patch.dump();
}

}  // namespace
}  // namespace espalier
