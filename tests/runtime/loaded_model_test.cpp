// SPDX-License-Identifier: Apache-2.0
// Checkpoint folders: every on-disk form of the tiny model gives the same answer, and what does not fit together is one
// clear line.
#include "runtime/loaded_model.h"

#include <ATen/Context.h>
#include <gtest/gtest.h>

#include "espalier/engine.h"
#include "espalier/error.h"
#include "recording/record.h"
#include "tests/runtime/derived_checkpoint.h"
#include "tests/runtime/golden_case.h"
#include "tests/support/tensors.h"

namespace espalier {
namespace {

using test::Arrays;
using test::DerivedCheckpoint;
using test::expect_says;
using test::GoldenCase;
using test::message_of;

// The golden prompt with one picture, its tensors as dumped.
Arrays dumped(const std::filesystem::path& folder, ComputeDtype dtype = ComputeDtype::kFloat32) {
  const test::ScratchFolder out;
  const LoadedModel model = load_model(folder, {.dtype = dtype, .on_progress = {}});
  const GoldenCase golden("single");
  dump(model, golden.request(), out.path() / "run", golden.tensors, {});
  return test::read_arrays(out.path() / "run.safetensors");
}

const Arrays& reference() {
  static const Arrays arrays = dumped(test::tiny_llava_folder());
  return arrays;
}

void expect_same_run(const std::filesystem::path& folder) {
  const Arrays mine = dumped(folder);
  for (const char* name : {"image_features", "hidden.8", "logits"})
    test::expect_same(mine.at(name), reference().at(name), name);
  EXPECT_TRUE(mine.at("greedy_tokens").equal(reference().at("greedy_tokens")));
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  return text.starts_with(from) ? to + text.substr(from.size()) : text;
}

// The names of docs/specs/models.md 1.2, second and third column.
std::string new_name(const std::string& old, const std::string& vision_prefix) {
  for (const auto& [from, to] : {std::pair<std::string, std::string>{"language_model.lm_head.", "lm_head."},
                                 {"language_model.model.", "model.language_model."},
                                 {"vision_tower.vision_model.", vision_prefix},
                                 {"multi_modal_projector.", "model.multi_modal_projector."}})
    if (old.starts_with(from)) return replaced(old, from, to);
  return old;
}

TEST(LoadedModel, NewNames) {
  for (const char* vision : {"model.vision_tower.vision_model.", "model.vision_tower."}) {
    SCOPED_TRACE(vision);
    DerivedCheckpoint checkpoint;
    checkpoint.rename([&](const std::string& name) { return new_name(name, vision); });
    checkpoint.write();
    expect_same_run(checkpoint.path());
  }
}

TEST(LoadedModel, Shards) {
  DerivedCheckpoint checkpoint;
  checkpoint.write_shards(3);
  expect_same_run(checkpoint.path());
}

TEST(LoadedModel, NamesThatNobodyNeedsAreIgnored) {
  DerivedCheckpoint checkpoint;
  checkpoint.weights["vision_tower.vision_model.embeddings.position_ids"] = test::int64_tensor({0, 1, 2});
  checkpoint.weights["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = test::random_tensor({4});
  checkpoint.write();
  expect_same_run(checkpoint.path());
}

// float32 storage of float16 values is the same model; NaN-free rounding to bfloat16 is nearly.
TEST(LoadedModel, StoredInOtherDtypes) {
  DerivedCheckpoint wide;
  wide.map([](const std::string&, const at::Tensor& t) { return t.to(at::kFloat); });
  wide.patch("config.json", {{"torch_dtype", "float32"}, {"text_config", {{"torch_dtype", "float32"}}}});
  wide.write();
  expect_same_run(wide.path());

  DerivedCheckpoint narrow;
  narrow.map([](const std::string&, const at::Tensor& t) { return t.to(at::kBFloat16); });
  narrow.patch("config.json", {{"torch_dtype", nullptr}, {"dtype", "bfloat16"}});
  narrow.write();
  EXPECT_EQ(load_model(narrow.path(), EngineOptions{}).dtype, at::kBFloat16);
  const test::RelativeError error = test::relative_error(dumped(narrow.path()).at("logits"), reference().at("logits"));
  EXPECT_LT(error.max, 0.8);
  EXPECT_LT(error.rms, 0.1);
  EXPECT_GT(error.rms, 1e-4);
}

TEST(LoadedModel, TiedHead) {
  DerivedCheckpoint untied, tied;
  const at::Tensor embedding = untied.weights.at("language_model.model.embed_tokens.weight");
  untied.weights["language_model.lm_head.weight"] = embedding;
  untied.write();
  tied.weights.erase("language_model.lm_head.weight");
  tied.patch("config.json", {{"tie_word_embeddings", true}});
  tied.write();
  test::expect_same(dumped(tied.path()).at("logits"), dumped(untied.path()).at("logits"));
}

// Weights lie in the map where dtype and device allow: loading copies nothing.
TEST(LoadedModel, WeightsStayMapped) {
  const LoadedModel model = load_model(test::tiny_llava_folder(), {.dtype = ComputeDtype::kFloat16, .on_progress = {}});
  const SafetensorsFile file = SafetensorsFile::open(test::tiny_llava_folder() / "model.safetensors");
  const TensorView& norm = file.tensors().at("language_model.model.norm.weight");
  const TensorView& other = file.tensors().at("language_model.model.layers.3.mlp.up_proj.weight");
  const auto distance = reinterpret_cast<const std::byte*>(model.weights.decoder.layers[3].up.const_data_ptr()) -
                        reinterpret_cast<const std::byte*>(model.weights.decoder.norm.const_data_ptr());
  EXPECT_EQ(distance, other.bytes.data() - norm.bytes.data());
}

TEST(LoadedModel, FactsForPolicies) {
  const ModelFacts& facts = test::tiny_llava().facts;
  EXPECT_EQ(facts.num_layers, 8);
  EXPECT_EQ(facts.hidden_size, 128);
  EXPECT_EQ(facts.num_heads, 4);
  EXPECT_EQ(facts.num_kv_heads, 4);
  EXPECT_EQ(facts.head_dim, 32);
  EXPECT_EQ(facts.intermediate_size, 256);
  EXPECT_EQ(facts.vision_layers, 4);
  EXPECT_EQ(facts.vision_feature_layer, 2);  // -2 of 4 layers: behind the third
  EXPECT_EQ(facts.vision_heads, 4);
  EXPECT_EQ(facts.vision_hidden_size, 64);
  EXPECT_TRUE(facts.has_class_token);
  EXPECT_FALSE(facts.has_text_tower);
  EXPECT_FALSE(facts.has_mrope);
}

// ---- what does not fit ----

std::string refusal(const std::filesystem::path& folder) {
  return message_of<Error>([&] { load_model(folder, EngineOptions{}); });
}

TEST(LoadedModel, ShapesThatContradictTheConfig) {
  DerivedCheckpoint checkpoint;
  at::Tensor& weight = checkpoint.weights.at("language_model.model.layers.2.mlp.up_proj.weight");
  weight = weight.slice(0, 0, 255).contiguous();
  checkpoint.write();
  expect_says(refusal(checkpoint.path()),
              {checkpoint.path().c_str(), "layers.2.mlp.up_proj.weight", "[256, 128]", "[255, 128]"});
}

TEST(LoadedModel, ConfigThatContradictsTheShapes) {
  DerivedCheckpoint checkpoint;
  checkpoint.write();
  checkpoint.patch("config.json", {{"text_config", {{"vocab_size", 1700}}}});
  expect_says(refusal(checkpoint.path()), {"embed_tokens.weight", "[1700, 128]", "[1664, 128]"});
  checkpoint.patch("config.json", {{"text_config", {{"vocab_size", 1664}}}, {"vision_config", {{"image_size", 70}}}});
  expect_says(refusal(checkpoint.path()), {"position_embedding.weight", "[26, 64]", "[17, 64]"});
}

TEST(LoadedModel, MissingTensors) {
  for (const char* name :
       {"language_model.lm_head.weight", "language_model.model.layers.7.input_layernorm.weight",
        "multi_modal_projector.linear_1.bias", "vision_tower.vision_model.embeddings.class_embedding"}) {
    DerivedCheckpoint checkpoint;
    checkpoint.weights.erase(name);
    checkpoint.write();
    const std::string plain = name;  // what all layouts call it alike: the last two parts
    expect_says(refusal(checkpoint.path()),
                {checkpoint.path().c_str(), plain.substr(plain.find_last_of('.', plain.rfind('.') - 1) + 1).c_str()});
  }
}

TEST(LoadedModel, WeightsThatAreNoFloats) {
  for (const auto dtype : {at::kLong, at::kDouble}) {
    DerivedCheckpoint checkpoint;
    at::Tensor& weight = checkpoint.weights.at("language_model.model.norm.weight");
    weight = weight.to(dtype);
    checkpoint.write();
    expect_says(refusal(checkpoint.path()),
                {checkpoint.path().c_str(), "norm.weight", "F32, F16 or BF16", dtype == at::kLong ? "I64" : "F64"});
  }
}

TEST(LoadedModel, MissingFiles) {
  for (const char* file : {"config.json", "tokenizer.json", "preprocessor_config.json"}) {
    DerivedCheckpoint checkpoint;
    checkpoint.write();
    checkpoint.remove(file);
    expect_says(refusal(checkpoint.path()), {file});
  }
  const DerivedCheckpoint without_weights;
  expect_says(refusal(without_weights.path()), {"model.safetensors"});
  expect_says(refusal("/no/such/folder"), {"/no/such/folder"});
}

TEST(LoadedModel, WithoutAChatTemplateRawPromptsStillWork) {
  DerivedCheckpoint checkpoint;
  checkpoint.write();
  checkpoint.remove("chat_template.json");
  const Engine engine = Engine::load(checkpoint.path(), {.dtype = ComputeDtype::kFloat32, .on_progress = {}});
  expect_says(message_of<Error>([&] { engine.count_tokens(test::in_context_prompt(0)); }),
              {checkpoint.path().c_str(), "no chat template"});
  EXPECT_GT(engine.count_tokens(RawPrompt{"red cat", {}, {}}).prompt_tokens, 1);
}

TEST(LoadedModel, PreprocessorThatContradictsTheTower) {
  DerivedCheckpoint checkpoint;
  checkpoint.write();
  checkpoint.patch("preprocessor_config.json",
                   {{"crop_size", {{"height", 70}, {"width", 42}}}, {"size", {{"shortest_edge", 80}}}});
  const std::string message = message_of<Error>([&] {
    const LoadedModel model = load_model(checkpoint.path(), EngineOptions{});
    const test::ScratchFolder out;
    dump(model, GoldenCase("single").request(), out.path() / "run", {}, {});
  });
  expect_says(message, {"preprocessor_config.json", "[1, 3, 70, 42]", "[1, 3, 56, 56]"});
}

TEST(LoadedModel, UnknownDtypeAndUnsupportedSelection) {
  DerivedCheckpoint checkpoint;
  checkpoint.write();
  checkpoint.patch("config.json", {{"torch_dtype", "float8"}});
  expect_says(refusal(checkpoint.path()), {"config.json", "dtype", "float8"});
  checkpoint.patch("config.json", {{"torch_dtype", "float16"}, {"vision_feature_select_strategy", "full"}});
  expect_says(refusal(checkpoint.path()), {"config.json", "vision_feature_select_strategy", "full"});
}

TEST(LoadedModel, NoCudaOnThisMachine) {
  if (at::hasCUDA()) GTEST_SKIP() << "it has";
  EngineOptions cuda;
  cuda.device = DeviceKind::kCuda;
  expect_says(message_of<Error>([&] { load_model(test::tiny_llava_folder(), cuda); }), {"cuda"});
}

TEST(LoadedModel, LoadingTellsItsProgress) {
  int64_t last = 0, total = 0;
  const Progress progress = [&](std::string_view stage, int64_t done, int64_t of) {
    EXPECT_EQ(stage, "load");
    EXPECT_EQ(done, last + 1);
    last = done;
    total = of;
  };
  EngineOptions options;
  options.on_progress = progress;
  load_model(test::tiny_llava_folder(), options);
  EXPECT_EQ(last, total);
  EXPECT_EQ(total, 3 + 2 + 4 * 16 + 4 + 8 * 9 + 3);  // tower, projector, decoder
}

}  // namespace
}  // namespace espalier
