// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <regex>
#include <set>

#include "tests/cli/golden_case.h"
#include "tests/cli/run_espalier.h"

namespace espalier::test {
namespace {

using nlohmann::json;

const Arguments kGenerate = {"generate", "--model", kModel.string(), "--dtype", "f32"};
const Arguments kGreedy16 = {"--greedy", "--ignore-eos", "--max-new-tokens", "16"};

// Within one grey level: the reference resizes with torchvision, Espalier as Pillow does.
void expect_pixels_near(const std::filesystem::path& dump, const GoldenCase& golden) {
  const std::vector<double> own = numbers(SafetensorsFile::open(dump).tensors().at("pixel_values"));
  const std::vector<double> expected = numbers(SafetensorsFile::open(golden.tensors_file).tensors().at("pixel_values"));
  ASSERT_EQ(own.size(), expected.size());
  const double grey_level = 1.0 / 255 / 0.2613;
  for (size_t i = 0; i < own.size(); ++i) ASSERT_NEAR(own[i], expected[i], 1.5 * grey_level) << i;
}

class Golden : public testing::TestWithParam<const char*> {};

TEST_P(Golden, TokensPromptAndTextEqualTransformers) {
  const GoldenCase golden(GetParam());
  const TemporaryFolder folder;
  const json result = json_of(kGenerate + golden.prompt(folder) + golden.pixels() + kGreedy16 + Arguments{"--json"});
  EXPECT_EQ(result["prompt"], golden.json["prompt"]);
  EXPECT_EQ(result["prompt_token_ids"], golden.json["input_ids"]);
  EXPECT_EQ(result["token_ids"], golden.json["greedy_tokens"]);
  EXPECT_EQ(result["text"], golden.json["text"]);
  EXPECT_EQ(result["finish_reason"], "length");
}

TEST_P(Golden, DumpedTensorsEqualTransformers) {
  const GoldenCase golden(GetParam());
  const TemporaryFolder folder;
  const std::string prefix = folder / "mine";
  output_of(kGenerate + golden.prompt(folder) + golden.pixels() + kGreedy16 + Arguments{"--dump", prefix});
  const json written = read_json(prefix + ".json");
  EXPECT_EQ(written["input_ids"], golden.json["input_ids"]);
  EXPECT_EQ(written["greedy_tokens"], golden.json["greedy_tokens"]);
  EXPECT_EQ(written["prompt"], golden.json["prompt"]);
  const SafetensorsFile mine = SafetensorsFile::open(prefix + ".safetensors");
  const SafetensorsFile reference = SafetensorsFile::open(golden.tensors_file);
  std::set<std::string> compared;
  for (const auto& [name, view] : reference.tensors()) {
    if (!mine.tensors().contains(name)) continue;
    EXPECT_EQ(mine.tensors().at(name).shape, view.shape) << name;
    expect_near_golden(numbers(mine.tensors().at(name)), numbers(view), name);
    compared.insert(name);
  }
  for (const std::string name : {"input_ids", "hidden.0", "hidden.8", "final_norm", "greedy_tokens"})
    EXPECT_TRUE(compared.contains(name)) << name;
  const std::vector<double> tail = numbers(reference.tensors().at("logits_tail"));
  const std::vector<double> logits = numbers(mine.tensors().at("logits"));
  ASSERT_GE(logits.size(), tail.size());
  expect_near_golden({logits.end() - std::ssize(tail), logits.end()}, tail, "the last rows of logits");
}

TEST_P(Golden, OwnPixelsAreWithinOneGreyLevel) {
  const GoldenCase golden(GetParam());
  if (golden.json["image_files"].empty()) GTEST_SKIP() << "no pictures";
  const TemporaryFolder folder;
  output_of(kGenerate + golden.prompt(folder) + Arguments{"--max-new-tokens", "1", "--dump", folder / "mine"});
  expect_pixels_near(folder / "mine.safetensors", golden);
}

INSTANTIATE_TEST_SUITE_P(Cases, Golden,
                         testing::Values("single", "small_square", "pair_raw", "icl4", "wide", "tall", "text_only"),
                         [](const auto& chosen) { return std::string(chosen.param); });

TEST(Generate, PromptIsOneUserTurnOfPicturesAndText) {
  const GoldenCase golden("single");
  const Arguments images = {"--image", (kCases / golden.json["image_files"][0]).string()};
  const json result = json_of(kGenerate + images +
                              Arguments{"--prompt", "What is shown in this image?", "--max-new-tokens", "1", "--json"});
  EXPECT_EQ(result["prompt"], golden.json["prompt"]);
  EXPECT_EQ(result["prompt_token_ids"], golden.json["input_ids"]);
}

TEST(Generate, SeveralImageOptionsStandInPromptOrder) {
  const GoldenCase golden("pair_raw");
  const TemporaryFolder folder;
  Arguments images;
  for (const json& file : golden.json["image_files"])
    images.insert(images.end(), {"--image", (kCases / file).string()});
  output_of(kGenerate + images + Arguments{"--prompt", "Which?", "--max-new-tokens", "1", "--dump", folder / "order"});
  expect_pixels_near(folder / "order.safetensors", golden);
}

TEST(Generate, TextModeStreamsWhatJsonHolds) {
  const GoldenCase golden("icl4");
  const TemporaryFolder folder;
  const Arguments common = kGenerate + golden.prompt(folder) + golden.pixels() + kGreedy16;
  EXPECT_EQ(output_of(common), json_of(common + Arguments{"--json"})["text"].get<std::string>() + "\n");
}

TEST(Generate, StopStringEndsTheTextBeforeIt) {
  const GoldenCase golden("text_only");  // " … lef… walls; walls; g't boat. 33 boat. doing? …"
  const TemporaryFolder folder;
  const std::string text = golden.json["text"];
  ASSERT_NE(text.find("boat. 33"), std::string::npos);
  const Arguments common = kGenerate + golden.prompt(folder) + kGreedy16;
  const Arguments stops = {"--stop", "not in it", "--stop", "boat. 33"};
  const json result = json_of(common + stops + Arguments{"--json"});
  EXPECT_EQ(result["text"], text.substr(0, text.find("boat. 33")));
  EXPECT_EQ(result["finish_reason"], "stop_string");
  EXPECT_LT(result["token_ids"].size(), 16u);
  EXPECT_EQ(output_of(common + stops), result["text"].get<std::string>() + "\n");
}

TEST(Generate, JsonTellsWhatThePolicyDid) {
  const GoldenCase golden("icl4");
  const TemporaryFolder folder;
  const Outcome outcome =
      run_espalier(kGenerate + golden.prompt(folder) + kGreedy16 +
                   Arguments{"--policy", "fastv:keep_ratio=1/2,layer=3", "--threads", "1", "--json"});
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_EQ(outcome.err, "");
  const json result = json::parse(outcome.out);
  const json& stats = result["stats"];
  const int64_t n = std::ssize(golden.json["input_ids"]);
  EXPECT_EQ(stats["image_tokens"], json({16, 16, 16, 16, 16}));
  EXPECT_EQ(stats["tokens_per_layer"], json({n, n, n, n - 40, n - 40, n - 40, n - 40, n - 40}));
  EXPECT_EQ(stats["kv_tokens_per_layer"], stats["tokens_per_layer"]);
  ASSERT_EQ(stats["image_tokens_per_layer"].size(), 8u);
  int64_t left = 0;
  for (const int64_t count : stats["image_tokens_per_layer"][7].get<std::vector<int64_t>>()) left += count;
  EXPECT_EQ(left, 40);
  EXPECT_LT(stats["kv_bytes"], stats["kv_bytes_unpruned"]);
  EXPECT_LT(stats["flops"]["prefill"], stats["flops"]["prefill_unpruned"]);
  EXPECT_GT(stats["flops"]["probe"], 0);
  EXPECT_GT(stats["peak_memory_bytes"], 0);
  EXPECT_EQ(stats["threads"], 1);
  for (const char* stage : {"encode", "select", "prefill", "decode"}) EXPECT_GT(stats["time_ms"][stage], 0.0) << stage;
  ASSERT_EQ(result["points"].size(), 1u);
  const json& point = result["points"][0];
  EXPECT_EQ(point["site"], "before_layer");
  EXPECT_EQ(point["layer"], 3);
  EXPECT_EQ(point["kept"].size(), 40u);
  EXPECT_EQ(point["candidates"].size(), 80u);
  EXPECT_EQ(point["scores"].size(), 80u);
  EXPECT_EQ(result["kept"], point["kept"]);
}

TEST(Generate, StatsGoToStderrAndLeaveTheTextAlone) {
  const GoldenCase golden("single");
  const TemporaryFolder folder;
  const Arguments common = kGenerate + golden.prompt(folder) + kGreedy16;
  const Outcome outcome = run_espalier(common + Arguments{"--stats"});
  EXPECT_EQ(outcome.out, output_of(common));
  for (const char* part : {"tokens by layer", "0-7: 32", "time to first token", "KV cache", "peak memory", "threads"})
    EXPECT_NE(outcome.err.find(part), std::string::npos) << part << " in\n" << outcome.err;
}

TEST(Generate, SeedDecidesTheSample) {
  const GoldenCase golden("single");
  const TemporaryFolder folder;
  const Arguments common =
      kGenerate + golden.prompt(folder) + Arguments{"--temperature", "1.5", "--ignore-eos", "--max-new-tokens", "8"};
  const std::string first = output_of(common + Arguments{"--seed", "7"});
  EXPECT_EQ(first, output_of(common + Arguments{"--seed", "7"}));
  EXPECT_NE(first, output_of(common + Arguments{"--seed", "8"}));
}

TEST(Generate, InterruptEndsItWith130) {
  const GoldenCase golden("single");
  const TemporaryFolder folder;
  EspalierProcess process(kGenerate + golden.prompt(folder) +
                          Arguments{"--greedy", "--ignore-eos", "--max-new-tokens", "1500", "--dump", folder / "mine"});
  ASSERT_TRUE(process.wait_for_output()) << "text has to stream before the end";
  process.interrupt();
  const Outcome outcome = process.wait();
  EXPECT_EQ(outcome.status, 130);
  EXPECT_EQ(outcome.err, "");
  EXPECT_FALSE(std::filesystem::exists(folder / "mine.safetensors"));
  EXPECT_FALSE(std::filesystem::exists(folder / "mine.json"));
}

// JSON on standard output in place of the text, or in a file beside it: one rule for every command.
TEST(Json, IsAFlagOrAFile) {
  const TemporaryFolder folder;
  const std::string file = folder / "out.json";
  const Arguments ask = {"generate", "--model", kModel.string(), "--prompt", "Hello", "--max-new-tokens", "2"};
  const std::string text = output_of(ask);
  EXPECT_EQ(output_of(ask + Arguments{"--json", file}), text);
  json in_file = read_json(file), printed = json_of(ask + Arguments{"--json"});
  EXPECT_EQ(in_file["text"].get<std::string>() + "\n", text);
  EXPECT_EQ(in_file["token_ids"], printed["token_ids"]);
  const Arguments list = {"policies"};
  EXPECT_EQ(output_of(list + Arguments{"--json", file}), output_of(list));
  EXPECT_EQ(read_json(file)["policies"], json_of(list + Arguments{"--json"})["policies"]);
  const Outcome outcome = run_espalier(ask + Arguments{"--json", folder / "nowhere" / "out.json"});
  EXPECT_EQ(outcome.status, 2);
  EXPECT_EQ(outcome.out, "");
}

// Who wrote it, when, of what.
TEST(Json, BeginsWithWhatWroteIt) {
  const json run = json_of({"generate", "--model", kModel.string(), "--dtype", "bf16", "--prompt", "Hello",
                            "--max-new-tokens", "1", "--policy", "random:keep_ratio=1/2,seed=0", "--json"});
  const std::string version = output_of({"--version"}).substr(9, 5);
  for (const json& output : {run, json_of({"policies", "--json"})}) {
    EXPECT_EQ(output["schema"], 1);
    EXPECT_EQ(output["espalier"], version);
    EXPECT_TRUE(std::regex_match(output["date"].get<std::string>(),
                                 std::regex("20[0-9]{2}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9]Z")));
  }
  EXPECT_EQ(run["model"], "llava15");
  EXPECT_EQ(run["dtype"], "bf16");
  EXPECT_EQ(run["device"], "cpu");
  EXPECT_EQ(run["policy"], "random:keep_ratio=1/2");
}

// What there was of an answer when Ctrl-C came.
TEST(Json, OfAnAnswerThatWasInterrupted) {
  const TemporaryFolder folder;
  const std::string file = folder / "out.json";
  EspalierProcess process({"generate", "--model", kModel.string(), "--prompt", "Hello", "--greedy", "--ignore-eos",
                           "--max-new-tokens", "1500", "--json", file, "--stats"});
  ASSERT_TRUE(process.wait_for_output());
  process.interrupt();
  const Outcome outcome = process.wait();
  EXPECT_EQ(outcome.status, 130);
  const json half = read_json(file);
  EXPECT_EQ(half["finish_reason"], "cancelled");
  EXPECT_EQ(half["text"].get<std::string>() + "\n", outcome.out);
  EXPECT_LT(half["token_ids"].size(), 1500U);
  EXPECT_NE(outcome.err.find("time to first token"), std::string::npos);
}

TEST(Help, EveryCommandExplainsItself) {
  const std::string overview = output_of({"--help"});
  for (const std::string command : {"generate", "answer", "bench", "tokenize", "policies", "record", "replay"}) {
    EXPECT_NE(overview.find(command), std::string::npos) << command;
    EXPECT_NE(output_of({command, "--help"}).find("espalier " + command), std::string::npos) << command;
  }
  EXPECT_EQ(output_of({"--version"}).substr(0, 9), "espalier ");
}

}  // namespace
}  // namespace espalier::test
