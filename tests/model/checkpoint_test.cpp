// SPDX-License-Identifier: Apache-2.0
#include "model/checkpoint.h"

#include <nlohmann/json.hpp>

#include "tests/support/temporary_folder.h"

namespace espalier {
namespace {

TEST(CanonicalName, CoversEveryLayout) {
  const std::pair<const char*, const char*> cases[] = {
      // published LLaVA
      {"language_model.model.embed_tokens.weight", "decoder.embed_tokens.weight"},
      {"language_model.model.layers.31.self_attn.q_proj.weight", "decoder.layers.31.self_attn.q_proj.weight"},
      {"language_model.model.norm.weight", "decoder.norm.weight"},
      {"language_model.lm_head.weight", "lm_head.weight"},
      {"vision_tower.vision_model.embeddings.class_embedding", "vision.embeddings.class_embedding"},
      {"vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias", "vision.encoder.layers.0.mlp.fc1.bias"},
      {"multi_modal_projector.linear_1.weight", "projector.linear_1.weight"},
      {"image_newline", "image_newline"},
      // 4.52 and later
      {"model.language_model.embed_tokens.weight", "decoder.embed_tokens.weight"},
      {"model.language_model.layers.0.input_layernorm.weight", "decoder.layers.0.input_layernorm.weight"},
      {"model.language_model.norm.weight", "decoder.norm.weight"},
      {"lm_head.weight", "lm_head.weight"},
      {"model.vision_tower.vision_model.pre_layrnorm.weight", "vision.pre_layrnorm.weight"},
      {"model.multi_modal_projector.linear_2.bias", "projector.linear_2.bias"},
      {"model.image_newline", "image_newline"},
      // in memory since 5.x
      {"model.vision_tower.pre_layrnorm.weight", "vision.pre_layrnorm.weight"},
      {"model.vision_tower.encoder.layers.3.layer_norm1.bias", "vision.encoder.layers.3.layer_norm1.bias"},
      // Qwen2.5-VL, published and new
      {"model.embed_tokens.weight", "decoder.embed_tokens.weight"},
      {"model.layers.2.self_attn.k_proj.bias", "decoder.layers.2.self_attn.k_proj.bias"},
      {"model.norm.weight", "decoder.norm.weight"},
      {"visual.patch_embed.proj.weight", "vision.patch_embed.proj.weight"},
      {"model.visual.merger.mlp.0.weight", "vision.merger.mlp.0.weight"},
      // of no layout: left alone
      {"norm.weight", "norm.weight"},
      {"model.something.weight", "model.something.weight"},
      {"", ""},
  };
  for (const auto& [on_disk, canonical] : cases) EXPECT_EQ(canonical_name(on_disk), canonical) << on_disk;
}

class CheckpointTest : public ::testing::Test {
 protected:
  // A one-element tensor for each name.
  void write(const std::string& file, std::initializer_list<const char*> names) {
    static constexpr float kValue = 1.0f;
    std::vector<TensorToWrite> tensors;
    for (const char* name : names) tensors.push_back({name, Dtype::kF32, {1}, &kValue});
    write_safetensors(folder_ / file, tensors);
  }
  void write_index(const std::string& weight_map) {
    folder_.write("model.safetensors.index.json", R"({"metadata":{},"weight_map":)" + weight_map + "}");
  }
  std::string error() {
    return error_of([&] { Checkpoint::open(folder_.path()); });
  }
  TemporaryFolder folder_;
};

TEST_F(CheckpointTest, ReadsOneFile) {
  write("model.safetensors", {"language_model.lm_head.weight", "language_model.model.norm.weight"});
  const Checkpoint checkpoint = Checkpoint::open(folder_.path());
  EXPECT_EQ(checkpoint.names(), (std::vector<std::string>{"decoder.norm.weight", "lm_head.weight"}));
  EXPECT_EQ(checkpoint.folder(), folder_.path());
  ASSERT_NE(checkpoint.find("lm_head.weight"), nullptr);
  EXPECT_EQ(checkpoint.find("lm_head.weight")->shape, std::vector<int64_t>{1});
  EXPECT_EQ(checkpoint.find("language_model.lm_head.weight"), nullptr);
}

TEST_F(CheckpointTest, ReadsShards) {
  std::filesystem::create_directory(folder_ / "parts");
  write("a.safetensors", {"lm_head.weight", "not.listed"});
  write("parts/b.safetensors", {"model.norm.weight"});
  write_index(R"({"lm_head.weight":"a.safetensors","model.norm.weight":"parts/b.safetensors"})");
  EXPECT_EQ(Checkpoint::open(folder_.path()).names(),
            (std::vector<std::string>{"decoder.norm.weight", "lm_head.weight"}));
}

TEST_F(CheckpointTest, OneFileWinsOverAnIndex) {
  write("model.safetensors", {"lm_head.weight"});
  write_index(R"({"x":"absent.safetensors"})");
  EXPECT_EQ(Checkpoint::open(folder_.path()).names(), std::vector<std::string>{"lm_head.weight"});
}

TEST_F(CheckpointTest, RefusesFoldersWithoutWeights) {
  EXPECT_ERROR(Checkpoint::open(folder_ / "absent"), "not a checkpoint folder");
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "neither model.safetensors nor", error());
}

TEST_F(CheckpointTest, RefusesBrokenIndexes) {
  const auto refuses = [&](const std::string& weight_map, const char* message) {
    write_index(weight_map);
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "model.safetensors.index.json: ", error());
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, message, error());
  };
  write("a.safetensors", {"lm_head.weight"});
  refuses(R"({"lm_head.weight":"absent.safetensors"})", "shard \"absent.safetensors\" is missing");
  refuses(R"({"model.norm.weight":"a.safetensors"})", "tensor \"model.norm.weight\" is not in its shard a.safetensors");
  refuses(R"({"lm_head.weight":3})", "weight_map \"lm_head.weight\": expected the name of a shard");
  refuses(R"([])", "field \"weight_map\": expected an object from tensor to shard, got []");
  refuses(R"(null)", "field \"weight_map\"");
  refuses(R"({"lm_head.weight":"a.safetensors","lm_head.weight":"a.safetensors"})", "appears twice");
  refuses(R"({)", "parse error at line 1");
}

TEST_F(CheckpointTest, RefusesShardsOutsideTheFolder) {
  write("a.safetensors", {"lm_head.weight"});
  const std::string outside = folder_.path().parent_path().string() + "/a.safetensors";
  for (const std::string& shard : {std::string("../a.safetensors"), std::string("x/../../a.safetensors"),
                                   std::string("/a.safetensors"), outside, std::string("")}) {
    write_index(R"({"lm_head.weight":")" + shard + "\"}");
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "is not a file inside the checkpoint folder", error()) << shard;
  }
}

TEST_F(CheckpointTest, RefusesTwoNamesForOneWeight) {
  write("model.safetensors", {"language_model.model.norm.weight", "model.language_model.norm.weight"});
  EXPECT_PRED_FORMAT2(::testing::IsSubstring, "are both decoder.norm.weight", error());
}

}  // namespace
}  // namespace espalier
