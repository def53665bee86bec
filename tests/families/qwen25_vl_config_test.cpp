// SPDX-License-Identifier: Apache-2.0
// config.json of Qwen2.5-VL: published files (decoder at the top level), newer saves (decoder in text_config), the
// class defaults, and every refusal.
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string>

#include "espalier/error.h"
#include "families/families.h"
#include "families/qwen25_vl/qwen25_vl.h"
#include "families/qwen_vl/qwen_vl.h"
#include "model/config_section.h"
#include "model/decoder.h"
#include "tests/support/tensors.h"

namespace espalier {
namespace {

using Json = nlohmann::json;

const std::string kFile = "folder/config.json";  // sections only refer to it

QwenVlConfig parse(const Json& json) {
  return read_qwen25_vl_config(Section(json, kFile));
}

// What the hub has for Qwen/Qwen2.5-VL-3B-Instruct (docs/specs/models.md, 1.1).
Json qwen_3b() {
  return Json::parse(R"({
    "architectures": ["Qwen2_5_VLForConditionalGeneration"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
    "vision_start_token_id": 151652, "vision_end_token_id": 151653, "vision_token_id": 151654, "image_token_id": 151655,
    "video_token_id": 151656, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 11008,
    "max_position_embeddings": 128000, "max_window_layers": 70, "model_type": "qwen2_5_vl", "num_attention_heads": 16,
    "num_hidden_layers": 36, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768,
    "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.41.2", "use_cache": true,
    "use_sliding_window": false,
    "vision_config": {"depth": 32, "hidden_act": "silu", "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "in_chans": 3,
                      "out_hidden_size": 2048, "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14, "window_size": 112,
                      "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2, "temporal_patch_size": 2},
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "vocab_size": 151936})");
}

Json nested(const Json& flat) {
  Json json = {{"model_type", "qwen2_5_vl"}, {"image_token_id", 151655}, {"dtype", "bfloat16"}};
  json["vision_config"] = flat.at("vision_config");
  json["text_config"] = flat;
  json["text_config"]["model_type"] = "qwen2_5_vl_text";
  for (const char* key : {"vision_config", "rope_scaling", "rope_theta", "torch_dtype", "image_token_id"})
    json["text_config"].erase(key);
  json["text_config"]["rope_parameters"] = {
      {"rope_type", "default"}, {"rope_theta", 1e6}, {"mrope_section", {16, 24, 24}}};
  json["vision_config"].erase("in_chans");
  json["vision_config"]["in_channels"] = 3;
  json["vision_config"]["model_type"] = "qwen2_5_vl_vision";
  return json;
}

void expect_3b(const QwenVlConfig& c) {
  EXPECT_EQ(c.decoder.hidden_size, 2048);
  EXPECT_EQ(c.decoder.intermediate_size, 11008);
  EXPECT_EQ(c.decoder.num_layers, 36);
  EXPECT_EQ(c.decoder.num_heads, 16);
  EXPECT_EQ(c.decoder.num_kv_heads, 2);
  EXPECT_EQ(c.decoder.head_dim, 128);
  EXPECT_EQ(c.decoder.vocab_size, 151936);
  EXPECT_EQ(c.decoder.max_positions, 128000);
  EXPECT_EQ(c.decoder.sliding_window, 0);
  EXPECT_DOUBLE_EQ(c.decoder.rms_norm_eps, 1e-6);
  EXPECT_DOUBLE_EQ(c.decoder.rope_theta, 1e6);
  EXPECT_EQ(c.decoder.mrope_section, (std::vector<int64_t>{16, 24, 24}));
  EXPECT_TRUE(c.decoder.qkv_bias);
  EXPECT_TRUE(c.decoder.tied_head);
  EXPECT_EQ(c.vision.num_layers, 32);
  EXPECT_EQ(c.vision.hidden_size, 1280);
  EXPECT_EQ(c.vision.head_dim(), 80);
  EXPECT_EQ(c.vision.merge_size, 2);
  EXPECT_EQ(c.vision.temporal_patch_size, 2);
  EXPECT_EQ(c.vision.window_size, 112);
  EXPECT_EQ(c.vision.full_attention_layers, (std::vector<int>{7, 15, 23, 31}));
  EXPECT_EQ(c.vision.norm, PatchVitConfig::Norm::kRms);
  EXPECT_EQ(c.vision.mlp, PatchVitConfig::Mlp::kGated);
  EXPECT_FALSE(c.facts().has_class_token);
  EXPECT_EQ(c.facts().feature_layers, 32);
  EXPECT_EQ(c.facts().patches_per_token, 4);
  EXPECT_EQ(c.image_token_id, 151655);
  EXPECT_EQ(c.dtype, "bfloat16");
}

TEST(QwenConfig, Published) {
  expect_3b(parse(qwen_3b()));
}

TEST(QwenConfig, NewSaves) {
  expect_3b(parse(nested(qwen_3b())));
}

// Files of Transformers 4.5x have both forms; the nested one counts.
TEST(QwenConfig, BothForms) {
  Json both = qwen_3b();
  both["text_config"] = nested(qwen_3b())["text_config"];
  both["num_hidden_layers"] = 35;
  expect_3b(parse(both));
}

TEST(QwenConfig, ClassDefaults) {
  const QwenVlConfig c = parse({{"model_type", "qwen2_5_vl"}, {"vision_config", {{"out_hidden_size", 8192}}}});
  EXPECT_EQ(c.decoder.hidden_size, 8192);
  EXPECT_EQ(c.decoder.num_layers, 80);
  EXPECT_EQ(c.decoder.num_heads, 64);
  EXPECT_EQ(c.decoder.num_kv_heads, 8);
  EXPECT_EQ(c.decoder.vocab_size, 152064);
  EXPECT_DOUBLE_EQ(c.decoder.rms_norm_eps, 1e-5);
  EXPECT_EQ(c.decoder.mrope_section, (std::vector<int64_t>{16, 24, 24}));
  EXPECT_FALSE(c.decoder.tied_head);
  EXPECT_EQ(c.vision.full_attention_layers, (std::vector<int>{7, 15, 23, 31}));
  EXPECT_EQ(c.image_token_id, 151655);
  EXPECT_EQ(c.dtype, "float32");
}

TEST(QwenConfig, NamesAllWeights) {
  std::vector<std::string> names;
  for (const NamedShape& weight : weight_names(describe(parse(qwen_3b())))) names.push_back(weight.name);
  EXPECT_EQ(names.size(), 1u + 32 * 12 + 1 + 4 + 1 + 36 * 12 + 1);  // tied: no head
  const auto has = [&](const char* name) { return std::ranges::count(names, name) == 1; };
  EXPECT_TRUE(has("decoder.layers.35.self_attn.q_proj.bias"));
  EXPECT_FALSE(has("decoder.layers.35.self_attn.o_proj.bias"));
  EXPECT_TRUE(has("vision.blocks.31.mlp.gate_proj.bias"));
  EXPECT_TRUE(has("vision.merger.mlp.2.weight"));
  EXPECT_FALSE(has("lm_head.weight"));
}

TEST(QwenConfig, RefusesWithFileAndField) {
  const auto refusal = [](const Json& patch, bool is_nested = false) {
    Json json = is_nested ? nested(qwen_3b()) : qwen_3b();
    json.merge_patch(patch);
    try {
      parse(json);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  const std::pair<Json, const char*> cases[] = {
      {{{"rope_scaling", {{"mrope_section", {16, 24}}}}}, "rope_scaling.mrope_section\": expected three numbers"},
      {{{"rope_scaling", {{"mrope_section", {16, 24, 25}}}}}, "mrope_section\": [16,24,25] does not add up to 64"},
      {{{"rope_scaling", {{"type", "yarn"}}}}, "rope_scaling.type\": expected default or mrope, got \"yarn\""},
      {{{"use_sliding_window", true}}, "use_sliding_window\": a sliding window is not supported with M-RoPE"},
      {{{"vision_config", {{"hidden_act", "gelu"}}}}, "vision_config.hidden_act\": expected silu"},
      {{{"vision_config", {{"num_heads", 7}}}}, "vision_config.num_heads\": 7 heads of hidden_size 1280"},
      {{{"vision_config", {{"window_size", 27}}}}, "vision_config.window_size\": expected an integer from 28"},
      {{{"vision_config", {{"in_chans", 1}}}}, "in_chans\": expected an integer from 3 to 3"},
      {{{"vision_config", {{"fullatt_block_indexes", 7}}}}, "fullatt_block_indexes\": expected a list of layers"},
      {{{"vision_config", {{"model_type", "clip_vision_model"}}}}, "model_type\": expected qwen2_5_vl"},
      {{{"vision_config", {{"out_hidden_size", 3584}}}},
       "out_hidden_size\": 3584 is not the decoder's hidden_size 2048"},
      {{{"image_token_id", 200000}}, "image_token_id\": expected an integer from 0 to 151935"},
      {{{"hidden_act", "gelu"}}, "hidden_act\": expected silu"}};
  for (const auto& [patch, message] : cases)
    EXPECT_PRED_FORMAT2(testing::IsSubstring, message, refusal(patch)) << patch.dump();
  EXPECT_PRED_FORMAT2(testing::IsSubstring,
                      "folder/config.json: field \"text_config.num_hidden_layers\": expected an integer from 1",
                      refusal({{"text_config", {{"num_hidden_layers", 0}}}}, true));
}

// Frequency i turns with time, height or width, by its section; ids of one part are three equal ones.
TEST(MRope, SectionsTakeTheirPart) {
  DecoderConfig config;
  config.head_dim = 16;
  config.rope_theta = 100;
  config.mrope_section = {2, 3, 3};
  const at::Tensor ids = at::tensor(std::vector<int64_t>{0, 5, 7, 0, 6, 7, 0, 9, 7}, at::kLong).view({3, 3});
  const Rotary r = rotary(config, ids, at::kFloat);
  ASSERT_EQ(r.cos.sizes(), (at::IntArrayRef{3, 16}));
  for (int64_t token = 0; token < 3; ++token)
    for (int64_t i = 0; i < 16; ++i) {
      const int64_t frequency = i % 8, part = frequency < 2 ? 0 : frequency < 5 ? 1 : 2;
      const double angle = ids[part][token].item<double>() * std::pow(100.0, -2.0 * double(frequency) / 16);
      EXPECT_NEAR(r.cos[token][i].item<float>(), std::cos(angle), 1e-6);
      EXPECT_NEAR(r.sin[token][i].item<float>(), std::sin(angle), 1e-6);
    }
  const Rotary plain = rotary(config, at::tensor({0, 4, 7}, at::kLong), at::kFloat);
  test::expect_same(plain.cos[2], r.cos[2]);
}

}  // namespace
}  // namespace espalier
