// SPDX-License-Identifier: Apache-2.0
// The files of the bundled folder are those that training would write again: a change of wording, tokenizer or sizes
// asks for a new model.
#include "synth/llava_files.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "tests/support/folders.h"

namespace espalier::synth {
namespace {

TEST(LlavaFiles, TheBundledModelHasThem) {
  const std::filesystem::path folder = test::source_folder() / "models" / "demo";
  const std::vector<FolderFile> files = llava_files(kDemoSize, "bfloat16");
  EXPECT_EQ(files.size(), 8U);
  for (const FolderFile& file : files) {
    std::ifstream stored(folder / file.name, std::ios::binary);
    EXPECT_EQ(std::string(std::istreambuf_iterator<char>(stored), {}), file.text) << file.name;
  }
}

TEST(LlavaFiles, EveryRowOfALargerVocabularyIsAToken) {
  LlavaSize size;
  size.vocab = 1024;
  std::map<std::string, nlohmann::json> json;
  for (const FolderFile& file : llava_files(size, "bfloat16")) json[file.name] = nlohmann::json::parse(file.text);
  std::set<int64_t> ids;
  int64_t image = -1;
  for (const auto& [piece, id] : json["tokenizer.json"]["model"]["vocab"].items()) ids.insert(id.get<int64_t>());
  for (const nlohmann::json& token : json["tokenizer.json"]["added_tokens"]) {
    ids.insert(token["id"].get<int64_t>());
    if (token["content"] == "<image>") image = token["id"];
  }
  EXPECT_EQ(ids.size(), 1024U);
  EXPECT_EQ(*ids.rbegin(), 1023);
  EXPECT_EQ(json["config.json"]["vocab_size"], 1024);
  EXPECT_EQ(json["config.json"]["image_token_index"], image);
  EXPECT_EQ(nlohmann::json::parse(llava_config(size, "bfloat16")), json["config.json"]);
}

TEST(LlavaFiles, WeightsHaveTheirPublishedNames) {
  EXPECT_EQ(published_name("decoder.layers.0.self_attn.q_proj.weight"),
            "language_model.model.layers.0.self_attn.q_proj.weight");
  EXPECT_EQ(published_name("vision.pre_layrnorm.bias"), "vision_tower.vision_model.pre_layrnorm.bias");
  EXPECT_EQ(published_name("projector.linear_1.weight"), "multi_modal_projector.linear_1.weight");
  EXPECT_EQ(published_name("lm_head.weight"), "language_model.lm_head.weight");
}

}  // namespace
}  // namespace espalier::synth
