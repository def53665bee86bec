// SPDX-License-Identifier: Apache-2.0
// config.json of published checkpoints, old and new style, with the class defaults they leave out, and every refusal;
// frequencies of the rotary embedding against those of Transformers (tests/golden/rope).
#include "families/llava/config.h"

#include <ATen/ops/arange.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "espalier/error.h"
#include "families/families.h"
#include "families/llava_next/config.h"
#include "model/config_section.h"
#include "model/decoder.h"
#include "tests/support/folders.h"
#include "tests/support/tensors.h"

namespace espalier {
namespace {

using Json = nlohmann::json;

const std::string kFile = "folder/config.json";  // sections only refer to it

LlavaConfig parse(const Json& json) {
  return read_llava_config(Section(json, kFile));
}

LlavaNextConfig parse_next(const Json& json) {
  return read_llava_next_config(Section(json, kFile));
}

// What the hub has for llava-hf/llava-1.5-7b-hf (docs/specs/models.md, 1.1): everything that equals a class default is
// left out.
Json llava_7b() {
  return Json::parse(R"({
    "architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100, "image_token_index": 32000, "model_type": "llava",
    "pad_token_id": 32001, "projector_hidden_act": "gelu",
    "text_config": {"_name_or_path": "lmsys/vicuna-7b-v1.5", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 4096,
                    "model_type": "llama", "rms_norm_eps": 1e-05, "torch_dtype": "float16", "vocab_size": 32064},
    "tie_word_embeddings": false, "torch_dtype": "float16", "transformers_version": "4.36.0.dev0",
    "vision_config": {"hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "model_type": "clip_vision_model",
                      "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768, "vocab_size": 32000},
    "vision_feature_layer": -2, "vision_feature_select_strategy": "default", "vocab_size": 32064})");
}

void expect_vit_l_14_336(const ClipConfig& v) {
  EXPECT_EQ(v.hidden_size, 1024);
  EXPECT_EQ(v.intermediate_size, 4096);
  EXPECT_EQ(v.num_layers, 24);
  EXPECT_EQ(v.num_heads, 16);
  EXPECT_EQ(v.head_dim(), 64);
  EXPECT_EQ(v.image_size, 336);
  EXPECT_EQ(v.patch_size, 14);
  EXPECT_EQ(v.channels, 3);
  EXPECT_EQ(v.grid(), 24);
  EXPECT_EQ(v.num_patches(), 576);
  EXPECT_EQ(v.activation, Activation::kQuickGelu);
  EXPECT_DOUBLE_EQ(v.layer_norm_eps, 1e-5);
}

TEST(Config, Llava7bWithoutDefaults) {
  const LlavaConfig c = parse(llava_7b());
  expect_vit_l_14_336(c.vision);
  EXPECT_EQ(c.decoder.hidden_size, 4096);
  EXPECT_EQ(c.decoder.intermediate_size, 11008);
  EXPECT_EQ(c.decoder.num_layers, 32);
  EXPECT_EQ(c.decoder.num_heads, 32);
  EXPECT_EQ(c.decoder.num_kv_heads, 32);
  EXPECT_EQ(c.decoder.head_dim, 128);
  EXPECT_EQ(c.decoder.vocab_size, 32064);
  EXPECT_EQ(c.decoder.max_positions, 4096);
  EXPECT_EQ(c.decoder.sliding_window, 0);
  EXPECT_DOUBLE_EQ(c.decoder.rms_norm_eps, 1e-5);
  EXPECT_DOUBLE_EQ(c.decoder.rope_theta, 10000);
  EXPECT_EQ(c.decoder.rope_scaling.kind, RopeScaling::Kind::kNone);
  EXPECT_FALSE(c.decoder.tied_head);
  EXPECT_EQ(c.projector_activation, Activation::kGelu);
  EXPECT_TRUE(c.projector_bias);
  EXPECT_EQ(c.image_token_id, 32000);
  EXPECT_EQ(c.dtype, "float16");
  EXPECT_FALSE(c.keeps_class_token);
  EXPECT_EQ(c.vision_feature_layers, std::vector<int>{-2});
  EXPECT_EQ(c.feature_states(), std::vector<int>{23});
  EXPECT_EQ(c.last_vision_layer(), 23);
}

TEST(Config, Llava13b) {
  Json json = llava_7b();
  json["text_config"].update(
      {{"hidden_size", 5120}, {"intermediate_size", 13824}, {"num_hidden_layers", 40}, {"num_attention_heads", 40}});
  const DecoderConfig d = parse(json).decoder;
  EXPECT_EQ(d.hidden_size, 5120);
  EXPECT_EQ(d.intermediate_size, 13824);
  EXPECT_EQ(d.num_layers, 40);
  EXPECT_EQ(d.num_heads, 40);
  EXPECT_EQ(d.num_kv_heads, 40);  // kv heads follow the heads when they are not named
  EXPECT_EQ(d.head_dim, 128);
}

// llava-hf/llava-v1.6-mistral-7b-hf and -vicuna-13b-hf (docs/specs/models.md, 1.1).
Json llava_next_mistral() {
  Json json = llava_7b();
  json["model_type"] = "llava_next";
  json["image_grid_pinpoints"] = {{336, 672}, {672, 336}, {672, 672}, {1008, 336}, {336, 1008}};
  json["use_image_newline_parameter"] = true;
  json["text_config"] = Json::parse(R"({
    "_name_or_path": "mistralai/Mistral-7B-Instruct-v0.2", "architectures": ["MistralForCausalLM"], "intermediate_size": 14336,
    "max_position_embeddings": 32768, "model_type": "mistral", "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0, "sliding_window": null, "torch_dtype": "bfloat16", "vocab_size": 32064})");
  return json;
}

TEST(Config, LlavaNextMistral7b) {
  const LlavaNextConfig next = parse_next(llava_next_mistral());
  const LlavaConfig& c = next.llava;
  EXPECT_EQ(c.decoder.hidden_size, 4096);
  EXPECT_EQ(c.decoder.intermediate_size, 14336);
  EXPECT_EQ(c.decoder.num_layers, 32);
  EXPECT_EQ(c.decoder.num_heads, 32);
  EXPECT_EQ(c.decoder.num_kv_heads, 8);
  EXPECT_EQ(c.decoder.max_positions, 32768);
  EXPECT_EQ(c.decoder.sliding_window, 0);
  EXPECT_DOUBLE_EQ(c.decoder.rope_theta, 1e6);
  EXPECT_EQ(c.vision.image_size, 336);
  EXPECT_EQ(c.dtype, "float16");
  const std::vector<Pinpoint> pinpoints = {{336, 672}, {672, 336}, {672, 672}, {1008, 336}, {336, 1008}};
  EXPECT_EQ(next.grid_pinpoints, pinpoints);
  Json bare = llava_next_mistral();  // every key that equals its class's default left out
  for (const char* key : {"image_grid_pinpoints", "vision_config", "vision_feature_layer", "projector_hidden_act"})
    bare.erase(key);
  for (const char* key : {"intermediate_size", "num_key_value_heads", "sliding_window", "rope_theta"})
    bare["text_config"].erase(key);
  const LlavaNextConfig without = parse_next(bare);
  const LlavaConfig& d = without.llava;
  EXPECT_EQ(without.grid_pinpoints, pinpoints);
  EXPECT_EQ(d.vision.image_size, 336);
  EXPECT_EQ(d.decoder.intermediate_size, 14336);
  EXPECT_EQ(d.decoder.num_kv_heads, 8);
  EXPECT_EQ(d.decoder.sliding_window, 4096);  // absent is not null
  EXPECT_DOUBLE_EQ(d.decoder.rope_theta, 1e4);
}

TEST(Config, LlavaNextVicuna13b) {
  Json json = llava_7b();
  json["model_type"] = "llava_next";
  json["text_config"].update(
      {{"hidden_size", 5120}, {"intermediate_size", 13824}, {"num_hidden_layers", 40}, {"num_attention_heads", 40}});
  const LlavaNextConfig c = parse_next(json);
  EXPECT_EQ(c.llava.decoder.num_kv_heads, 40);
  EXPECT_EQ(c.llava.decoder.sliding_window, 0);
  EXPECT_EQ(c.grid_pinpoints.size(), 5U);
}

TEST(Config, NewSaves) {
  Json json = llava_7b();
  json.erase("torch_dtype");
  json.erase("image_token_index");
  json["dtype"] = "bfloat16";
  json["image_token_id"] = 31999;
  json["text_config"].erase("torch_dtype");
  json["text_config"]["dtype"] = "bfloat16";
  json["text_config"]["head_dim"] = 96;
  json["text_config"]["num_key_value_heads"] = 8;
  json["text_config"]["rope_scaling"] = nullptr;
  json["text_config"]["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 500000.0}};
  json["text_config"]["tie_word_embeddings"] = true;
  const LlavaConfig c = parse(json);
  EXPECT_EQ(c.dtype, "bfloat16");
  EXPECT_EQ(c.image_token_id, 31999);
  EXPECT_EQ(c.decoder.head_dim, 96);
  EXPECT_EQ(c.decoder.num_kv_heads, 8);
  EXPECT_DOUBLE_EQ(c.decoder.rope_theta, 500000);
  EXPECT_EQ(c.decoder.rope_scaling.kind, RopeScaling::Kind::kNone);
  EXPECT_TRUE(c.decoder.tied_head);  // true in either place
  json["text_config"]["tie_word_embeddings"] = false;
  json["tie_word_embeddings"] = true;
  EXPECT_TRUE(parse(json).decoder.tied_head);
}

TEST(Config, DtypeOfTheTextPartStandsInForTheWhole) {
  Json json = llava_7b();
  json.erase("torch_dtype");
  EXPECT_EQ(parse(json).dtype, "float16");
  json["text_config"].erase("torch_dtype");
  EXPECT_EQ(parse(json).dtype, "float32");
}

TEST(Config, ClassDefaults) {
  const Json tiny = {
      {"model_type", "llava"}, {"vision_config", Json::object()}, {"text_config", {{"vocab_size", 32064}}}};
  const LlavaConfig c = parse(tiny);
  EXPECT_EQ(c.vision.hidden_size, 768);
  EXPECT_EQ(c.vision.intermediate_size, 3072);
  EXPECT_EQ(c.vision.num_layers, 12);
  EXPECT_EQ(c.vision.num_heads, 12);
  EXPECT_EQ(c.vision.image_size, 224);
  EXPECT_EQ(c.vision.patch_size, 32);
  EXPECT_EQ(c.vision.activation, Activation::kQuickGelu);
  EXPECT_EQ(c.decoder.max_positions, 2048);
  EXPECT_DOUBLE_EQ(c.decoder.rms_norm_eps, 1e-6);
  EXPECT_EQ(c.vision_feature_layers, std::vector<int>{-2});
  Json without_tower = tiny;
  without_tower.erase("vision_config");
  expect_vit_l_14_336(parse(without_tower).vision);
}

TEST(Config, MistralDefaultsAndItsWindow) {
  Json json = llava_7b();
  json["text_config"] = {{"model_type", "mistral"}, {"vocab_size", 32064}};
  DecoderConfig d = parse(json).decoder;
  EXPECT_EQ(d.intermediate_size, 14336);
  EXPECT_EQ(d.num_kv_heads, 8);
  EXPECT_EQ(d.head_dim, 128);
  EXPECT_EQ(d.sliding_window, 4096);  // where the key is absent
  json["text_config"]["sliding_window"] = nullptr;
  EXPECT_EQ(parse(json).decoder.sliding_window, 0);
  json["text_config"]["sliding_window"] = 512;
  EXPECT_EQ(parse(json).decoder.sliding_window, 512);
}

TEST(Config, FeatureLayers) {
  Json json = llava_7b();
  json["vision_feature_layer"] = {-2, 5, 24, -25};
  const LlavaConfig c = parse(json);
  EXPECT_EQ(c.feature_states(), (std::vector<int>{23, 5, 24, 0}));
  EXPECT_EQ(c.last_vision_layer(), 24);
  json["vision_feature_select_strategy"] = "full";
  EXPECT_TRUE(parse(json).keeps_class_token);
}

// One change of the published file and what the message must hold.
struct Refusal {
  const char* patch;  // JSON merge patch
  std::vector<std::string> says;
};

TEST(Config, RefusesWithFileAndField) {
  const Refusal refusals[] = {
      {R"({"model_type": "llama"})", {"model_type", "unknown architecture \"llama\"", "known: llava, llava_next"}},
      {R"({"model_type": null})", {"model_type", "unknown architecture"}},
      {R"({"model_type": 3})", {"model_type", "expected a string, got 3"}},
      {R"({"text_config": {"model_type": "gpt2"}})", {"text_config.model_type", "llama or mistral", "gpt2"}},
      {R"({"vision_config": {"model_type": "siglip_vision_model"}})",
       {"vision_config.model_type", "clip_vision_model", "siglip"}},
      {R"({"text_config": []})", {"text_config", "expected an object, got []"}},
      {R"({"vision_config": 7})", {"vision_config", "expected an object, got 7"}},
      {R"({"text_config": {"hidden_size": "4096"}})", {"text_config.hidden_size", "an integer", "\"4096\""}},
      {R"({"text_config": {"hidden_size": 4096.5}})", {"text_config.hidden_size", "4096.5"}},
      {R"({"text_config": {"num_hidden_layers": 0}})", {"text_config.num_hidden_layers", "from 1", "got 0"}},
      {R"({"text_config": {"num_hidden_layers": -1}})", {"num_hidden_layers", "got -1"}},
      {R"({"text_config": {"vocab_size": 18446744073709551615}})", {"vocab_size", "18446744073709551615"}},
      {R"({"text_config": {"num_attention_heads": 33}})",
       {"num_attention_heads", "33 does not divide hidden_size 4096"}},
      {R"({"text_config": {"num_key_value_heads": 5}})",
       {"num_key_value_heads", "5 does not divide num_attention_heads 32"}},
      {R"({"text_config": {"num_key_value_heads": 64}})", {"num_key_value_heads", "64 does not divide"}},
      {R"({"text_config": {"head_dim": 63}})", {"head_dim", "even", "63"}},
      {R"({"text_config": {"rms_norm_eps": 0}})", {"rms_norm_eps", "above 0", "got 0"}},
      {R"({"text_config": {"rms_norm_eps": true}})", {"rms_norm_eps", "true"}},
      {R"({"text_config": {"hidden_act": "gelu"}})", {"text_config.hidden_act", "silu", "gelu"}},
      {R"({"text_config": {"attention_bias": true}})", {"attention_bias"}},
      {R"({"text_config": {"mlp_bias": "yes"}})", {"mlp_bias", "true or false", "yes"}},
      {R"({"text_config": {"rope_theta": -1}})", {"rope_theta", "-1"}},
      {R"({"text_config": {"rope_scaling": {"type": "yarn", "factor": 2}}})", {"rope_scaling.type", "yarn"}},
      {R"({"text_config": {"rope_scaling": {"type": "linear", "factor": "two"}}})", {"rope_scaling.factor", "two"}},
      {R"({"text_config": {"rope_parameters": {"rope_type": "longrope"}}})", {"rope_parameters.rope_type", "longrope"}},
      {R"({"text_config": {"rope_scaling": 2.0}})", {"rope_scaling", "an object"}},
      {R"({"text_config": {"rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1}}})",
       {"rope_scaling.high_freq_factor", "low_freq_factor"}},
      {R"({"vision_config": {"hidden_act": "swish"}})", {"vision_config.hidden_act", "unknown activation \"swish\""}},
      {R"({"projector_hidden_act": "elu"})", {"projector_hidden_act", "unknown activation \"elu\""}},
      {R"({"vision_config": {"num_attention_heads": 7}})",
       {"vision_config.num_attention_heads", "7 does not divide hidden_size 1024"}},
      {R"({"vision_config": {"patch_size": 400}})", {"vision_config.patch_size", "400", "336"}},
      {R"({"vision_config": {"num_channels": 1}})", {"num_channels", "got 1"}},
      {R"({"vision_feature_layer": 25})", {"vision_feature_layer", "25", "24 layers"}},
      {R"({"vision_feature_layer": [-2, -26]})", {"vision_feature_layer", "-26"}},
      {R"({"vision_feature_layer": []})", {"vision_feature_layer", "empty"}},
      {R"({"vision_feature_layer": "last"})", {"vision_feature_layer", "last"}},
      {R"({"vision_feature_layer": 4294967294})", {"vision_feature_layer", "4294967294"}},
      {R"({"vision_feature_select_strategy": "cls_patch"})",
       {"vision_feature_select_strategy", "default or full", "cls_patch"}},
      {R"({"image_token_index": 32064})", {"image_token_index", "from 0 to 32063", "32064"}},
      {R"({"image_token_index": null, "text_config": {"vocab_size": 1000}})", {"image_token_i", "32000", "1000"}},
      {R"({"tie_word_embeddings": 1})", {"tie_word_embeddings", "true or false"}},
      {R"({"multimodal_projector_bias": "no"})", {"multimodal_projector_bias"}},
      {R"({"model_type": "llava_next", "image_grid_pinpoints": [[336, 600]]})",
       {"image_grid_pinpoints", "[336, 600]", "tiles of 336"}},
      {R"({"model_type": "llava_next", "image_grid_pinpoints": [[336, 672], [0, 336]]})",
       {"image_grid_pinpoints", "[0, 336]"}},
      {R"({"model_type": "llava_next", "image_grid_pinpoints": [[-336, 336]]})",
       {"image_grid_pinpoints", "[-336, 336]"}},
      {R"({"model_type": "llava_next", "image_grid_pinpoints": [[336, 33936]]})",
       {"image_grid_pinpoints", "[336, 33936]"}},
      {R"({"model_type": "llava_next", "image_grid_pinpoints": [[168, 336]]})", {"image_grid_pinpoints", "[168, 336]"}},
      {R"({"model_type": "llava_next", "image_grid_pinpoints": [[336]]})", {"image_grid_pinpoints", "pairs", "[336]"}},
      {R"({"model_type": "llava_next", "image_grid_pinpoints": [[336.5, 336]]})",
       {"image_grid_pinpoints", "pairs", "336.5"}},
      {R"({"model_type": "llava_next", "image_grid_pinpoints": []})", {"image_grid_pinpoints", "empty"}},
      {R"({"model_type": "llava_next", "image_grid_pinpoints": "336"})", {"image_grid_pinpoints", "pairs"}},
      {R"({"torch_dtype": 16})", {"torch_dtype", "a string"}},
  };
  for (const Refusal& refusal : refusals) {
    SCOPED_TRACE(refusal.patch);
    Json json = llava_7b();
    json.merge_patch(Json::parse(refusal.patch));
    // merge_patch takes null as "remove"; the placeholder case means exactly that.
    try {
      parse_config(json.dump(), "folder/config.json");
      ADD_FAILURE() << "was accepted";
    } catch (const Error& e) {
      const std::string message = e.what();
      EXPECT_TRUE(message.starts_with("folder/config.json")) << message;
      EXPECT_EQ(message.find('\n'), std::string::npos) << message;
      for (const std::string& part : refusal.says)
        EXPECT_NE(message.find(part), std::string::npos) << message << " lacks " << part;
    }
  }
}

TEST(Config, RefusesWhatIsNotJson) {
  for (const char* text : {"", "{", "[1,", "{\"model_type\": \"llava\",}", "\xff"})
    EXPECT_THROW(parse_config(text, "config.json"), Error) << text;
  EXPECT_THROW(parse_config("[]", "config.json"), Error);
  EXPECT_THROW(parse_config("null", "config.json"), Error);
}

// The angle of position 1 is the frequency itself; sine and cosine of it give it back (frequencies lie in (0, 1]).
std::vector<double> frequencies_of(const DecoderConfig& config) {
  const Rotary r = rotary(config, test::int64_tensor({1}), at::kDouble);
  const std::vector<double> cosine = test::to_doubles(r.cos), sine = test::to_doubles(r.sin);
  std::vector<double> frequencies;
  for (size_t i = 0; i < cosine.size(); ++i) frequencies.push_back(std::atan2(sine[i], cosine[i]));
  return frequencies;
}

TEST(Rope, FrequenciesEqualTransformers) {
  std::ifstream file(test::golden_folder() / "rope/frequencies.json");
  ASSERT_TRUE(file);
  const Json cases = Json::parse(file);
  ASSERT_GE(cases.size(), 9U);
  for (const Json& golden : cases) {
    SCOPED_TRACE(golden.at("text_config").dump());
    Json json = llava_7b();
    json["image_token_index"] = 7;
    json["text_config"] = golden.at("text_config");
    const DecoderConfig config = parse(json).decoder;
    const auto expected = golden.at("inverse_frequencies").get<std::vector<double>>();
    const std::vector<double> actual = frequencies_of(config);
    ASSERT_EQ(actual.size(), 2 * expected.size());
    for (size_t i = 0; i < actual.size(); ++i)  // both halves of the head turn alike
      EXPECT_NEAR(actual[i], expected[i % expected.size()], 3e-6 * expected[i % expected.size()])
          << i;  // Transformers blends in float32
  }
}

// Angles are float32 products of position and frequency, whatever the dtype of the model.
TEST(Rope, AnglesGrowWithThePosition) {
  const DecoderConfig config = parse(llava_7b()).decoder;
  const at::Tensor positions = test::int64_tensor({0, 1, 77, 4095});
  const Rotary r = rotary(config, positions, at::kFloat);
  ASSERT_EQ(r.cos.sizes(), at::IntArrayRef({4, 128}));
  std::vector<double> cosine, sine;
  for (const float position : {0.f, 1.f, 77.f, 4095.f})
    for (int i = 0; i < 128; ++i) {
      const auto frequency = static_cast<float>(std::pow(10000.0, -(i % 64) / 64.0));
      cosine.push_back(std::cos(static_cast<double>(position * frequency)));
      sine.push_back(std::sin(static_cast<double>(position * frequency)));
    }
  test::expect_close(r.cos, cosine, 5e-4);  // one ulp of the frequency is 3e-4 at 4095 rad
  test::expect_close(r.sin, sine, 5e-4);
  EXPECT_EQ(rotary(config, positions, at::kBFloat16).sin.scalar_type(), at::kBFloat16);
}

}  // namespace
}  // namespace espalier
