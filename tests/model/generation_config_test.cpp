// SPDX-License-Identifier: Apache-2.0
#include "model/generation_config.h"

#include "tests/support/folders.h"
#include "tests/support/temporary_folder.h"

namespace espalier {
namespace {

class GenerationConfigTest : public ::testing::Test {
 protected:
  GenerationConfig read(const std::string& text) {
    folder_.write("generation_config.json", text);
    return read_generation_config(folder_.path());
  }
  TemporaryFolder folder_;
};

TEST_F(GenerationConfigTest, ReadsPublishedFiles) {
  const GenerationConfig llava = read_generation_config(test::golden_folder() / "llava15");
  EXPECT_EQ(llava.eos_ids, std::vector<int32_t>{2});
  EXPECT_EQ(llava.pad_id, 1601);
  EXPECT_FALSE(llava.do_sample);
  EXPECT_EQ(llava.repetition_penalty, 1.0);
  // Qwen2.5-VL
  const GenerationConfig qwen = read(R"({"bos_token_id": 151643, "pad_token_id": 151643, "do_sample": true,
      "eos_token_id": [151645, 151643], "repetition_penalty": 1.05, "temperature": 0.000001})");
  EXPECT_EQ(qwen.eos_ids, (std::vector<int32_t>{151645, 151643}));
  EXPECT_TRUE(qwen.do_sample);
  EXPECT_EQ(qwen.temperature, 1e-6);
  EXPECT_EQ(qwen.repetition_penalty, 1.05);
  const GenerationConfig sampled = read(R"({"do_sample": true, "top_k": 20, "top_p": 0.8})");
  EXPECT_EQ(sampled.top_k, 20);
  EXPECT_EQ(sampled.top_p, 0.8);
}

TEST_F(GenerationConfigTest, HasTheLibrarysDefaults) {
  const GenerationConfig config = read_generation_config(folder_.path());
  EXPECT_TRUE(config.eos_ids.empty());
  EXPECT_EQ(config.pad_id, std::nullopt);
  EXPECT_FALSE(config.do_sample);
  EXPECT_EQ(config.temperature, 1.0);
  EXPECT_EQ(config.top_k, 50);
  EXPECT_EQ(config.top_p, 1.0);
  EXPECT_EQ(config.repetition_penalty, 1.0);
}

TEST_F(GenerationConfigTest, TakesMissingTokensFromTheModel) {
  folder_.write(
      "config.json",
      R"({"eos_token_id": null, "pad_token_id": 5, "text_config": {"eos_token_id": [7], "pad_token_id": 6}})");
  EXPECT_EQ(read_generation_config(folder_.path()).eos_ids, std::vector<int32_t>{7});
  EXPECT_EQ(read_generation_config(folder_.path()).pad_id, 5);
  EXPECT_EQ(read(R"({"eos_token_id": null})").eos_ids, std::vector<int32_t>{7});
  EXPECT_EQ(read(R"({"eos_token_id": 3, "pad_token_id": 0})").eos_ids, std::vector<int32_t>{3});
  EXPECT_EQ(read(R"({"eos_token_id": 3, "pad_token_id": 0})").pad_id, 0);
}

TEST_F(GenerationConfigTest, TemperatureZeroMeansArgmax) {
  const GenerationConfig config = read(R"({"do_sample": true, "temperature": 0.0})");
  EXPECT_FALSE(config.do_sample);
  EXPECT_EQ(config.temperature, 1.0);
}

TEST_F(GenerationConfigTest, RefusesMalformedFields) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({)", "generation_config.json: parse error"},
      {R"([])", "expected an object"},
      {R"({"eos_token_id": "</s>"})", "field \"eos_token_id\": expected a token id or a list of them, got \"</s>\""},
      {R"({"eos_token_id": [1, -1]})", "field \"eos_token_id\""},
      {R"({"eos_token_id": 2147483648})", "field \"eos_token_id\""},
      {R"({"pad_token_id": 1.5})", "field \"pad_token_id\": expected a token id, got 1.5"},
      {R"({"do_sample": "yes"})", "field \"do_sample\": expected true or false"},
      {R"({"temperature": -1})", "field \"temperature\": expected a number above 0, got -1"},
      {R"({"top_k": 2.5})", "field \"top_k\": expected an integer"},
      {R"({"top_k": -2})", "field \"top_k\": expected 0 or more"},
      {R"({"top_p": 1.5})", "field \"top_p\": expected a number above 0 and up to 1"},
      {R"({"top_p": 0})", "field \"top_p\""},
      {R"({"repetition_penalty": 0})", "field \"repetition_penalty\": expected a number above 0"},
  };
  for (const auto& [text, message] : cases) EXPECT_ERROR(read(text), message);
  folder_.write("generation_config.json", "{}");
  folder_.write("config.json", R"({"text_config": {"eos_token_id": "x"}})");
  EXPECT_ERROR(read_generation_config(folder_.path()), "config.json: field \"text_config.eos_token_id\"");
}

}  // namespace
}  // namespace espalier
