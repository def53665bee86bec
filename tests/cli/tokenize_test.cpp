// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <sstream>

#include "tests/cli/run_espalier.h"

namespace espalier::test {
namespace {

using nlohmann::json;

// Every text of the goldens that the `tokenizers` library made.
TEST(Tokenize, EqualsTheReferenceOnEveryText) {
  const TemporaryFolder folder;
  for (const std::string name : {"llava15", "llava_next_vicuna", "qwen25vl"}) {
    SCOPED_TRACE(name);
    const json golden = read_json(kGolden / "tokenizer" / (name + ".json"));
    const std::filesystem::path model = name == "llava15" ? kModel : kGolden / "tokenizer" / name;
    json cases = json::array();
    for (const json& text : golden["texts"]) cases.push_back({{"text", text["text"]}});
    const std::string in = folder.write("cases.json", cases.dump()), out = folder / "ids.json";
    output_of({"tokenize", "--model", model, "--in", in, "--out", out});
    const json made = read_json(out);
    ASSERT_EQ(made.size(), golden["texts"].size());
    for (size_t i = 0; i < made.size(); ++i) {
      const json& text = golden["texts"][i];
      json with_prefix = golden["prefix"];
      with_prefix.insert(with_prefix.end(), text["ids"].begin(), text["ids"].end());
      EXPECT_EQ(made[i]["ids"], with_prefix) << text["text"];
      EXPECT_EQ(made[i]["ids_no_special"], text["ids"]) << text["text"];
      EXPECT_EQ(made[i]["decoded"], text["decoded"]) << text["text"];
      EXPECT_EQ(made[i]["decoded_skip_special"], text["decoded_skip_special"]) << text["text"];
    }
  }
}

TEST(Tokenize, AddsIdsAndWhatTheyDecodeTo) {
  const TemporaryFolder folder;
  const json golden = read_json(kCases / "text_only.json");
  const std::string in =
      folder.write("cases.json", json::array({{{"text", golden["prompt"]}, {"note", 7}}, {{"text", ""}}}).dump());
  const std::string out = folder / "ids.json";
  EXPECT_EQ(output_of({"tokenize", "--model", kModel, "--in", in, "--out", out}), "");
  const json made = read_json(out);
  ASSERT_EQ(made.size(), 2u);
  EXPECT_EQ(made[0]["text"], golden["prompt"]);
  EXPECT_EQ(made[0]["note"], 7);
  EXPECT_EQ(made[0]["ids"], golden["input_ids"]);
  json without_bos = golden["input_ids"];
  without_bos.erase(0);
  EXPECT_EQ(made[0]["ids_no_special"], without_bos);
  EXPECT_EQ(made[0]["decoded"], golden["prompt"]);
  EXPECT_EQ(made[1]["ids"], json::array({1}));
  EXPECT_EQ(made[1]["ids_no_special"], json::array());
}

// Lines of id and text that make up the text again; special tokens stand as what they are.
TEST(Tokenize, OfOneTextPrintsATokenPerLine) {
  const json whole = {{"text", "What's in <image>? caf\u00e9"}};
  const std::string out = output_of({"tokenize", "--model", kModel.string(), whole["text"].get<std::string>()});
  std::string text;
  json ids = json::array();
  std::istringstream lines(out);
  for (std::string line; std::getline(lines, line);) {
    const size_t tab = line.find('\t');
    ASSERT_NE(tab, std::string::npos) << line;
    ids.push_back(std::stoi(line.substr(0, tab)));
    text += json::parse(line.substr(tab + 1)).get<std::string>();
  }
  EXPECT_EQ(text, "<s>" + whole["text"].get<std::string>());
  const TemporaryFolder folder;
  const std::string in = folder.write("in.json", json::array({whole}).dump()), file = folder / "out.json";
  output_of({"tokenize", "--model", kModel.string(), "--in", in, "--out", file});
  EXPECT_EQ(read_json(file)[0]["ids"], ids);
  for (const Arguments& wrong : {Arguments{}, {"a", "--in", in, "--out", file}, {"--in", in}}) {
    const Outcome outcome = run_espalier(Arguments{"tokenize"} + wrong);
    EXPECT_EQ(outcome.status, 2);
    EXPECT_NE(outcome.err.find("either TEXT or both of --in and --out are needed"), std::string::npos) << outcome.err;
  }
}

}  // namespace
}  // namespace espalier::test
