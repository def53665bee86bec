// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <map>

#include "tests/cli/run_espalier.h"
#include "tests/support/policy_plugin.h"

namespace espalier::test {
namespace {

using nlohmann::json;

std::map<std::string, json> policies_of(const Arguments& more = {}) {
  std::map<std::string, json> by_name;
  const json all = json_of(Arguments{"policies", "--json"} + more);
  for (const json& policy : all["policies"]) by_name[policy["name"]] = policy;
  return by_name;
}

TEST(Policies, ListsNamesOptionsSitesAndPapers) {
  const auto policies = policies_of();
  for (const std::string name : {"none", "random", "fastv", "catp"}) ASSERT_TRUE(policies.contains(name)) << name;
  const json& catp = policies.at("catp");
  EXPECT_EQ(catp["sites"], json({"projector_output", "before_layer"}));
  EXPECT_NE(catp["paper"], "");
  std::map<std::string, json> options;
  for (const json& option : catp["options"]) options[option["name"]] = option;
  EXPECT_EQ(options.at("lambda1")["default"], "0.7");
  EXPECT_TRUE(options.contains("keep_ratio"));
  EXPECT_FALSE(catp.contains("runs"));
}

TEST(Policies, TextNamesThemAll) {
  const std::string text = output_of({"policies"});
  for (const auto& [name, policy] : policies_of()) EXPECT_NE(text.find(name + "\n"), std::string::npos) << name;
  EXPECT_NE(text.find("lambda1=0.7"), std::string::npos);
  EXPECT_NE(text.find("positions=keep"), std::string::npos);
}

// A plugin stands among them, with the options that it says it has.
TEST(Policies, ListsThoseOfPlugins) {
  const std::string plugin = policy_plugin().string();
  const json mine = policies_of({"--policy-plugin", plugin}).at("keep_centre");
  EXPECT_EQ(mine["plugin"], plugin);
  ASSERT_EQ(mine["options"].size(), 1U);
  EXPECT_EQ(mine["options"][0]["name"], "share");
  EXPECT_EQ(mine["options"][0]["default"], "1/2");
  const std::string text = output_of({"policies", "--policy-plugin", plugin});
  EXPECT_NE(text.find("keep_centre\n"), std::string::npos);
  EXPECT_NE(text.find("share=1/2"), std::string::npos);
}

// The program has the list in it and the library makes it anew for a plugin: the same but for what is the plugin's.
TEST(Policies, TheListOfTheProgramIsThatOfTheLibrary) {
  const Arguments with_plugin = {"--policy-plugin", policy_plugin().string()};
  const std::string built_in = output_of({"policies"}), made = output_of(Arguments{"policies"} + with_plugin);
  const size_t end_of_table = built_in.find("Every policy also takes:");
  ASSERT_NE(end_of_table, std::string::npos);
  EXPECT_TRUE(made.starts_with(built_in.substr(0, end_of_table) + "keep_centre\n"));
  EXPECT_TRUE(made.ends_with("\n\n" + built_in.substr(end_of_table)));
}

TEST(Policies, SaysWhatAModelCanRun) {
  for (const auto& [name, policy] : policies_of({"--model", kModel})) {
    if (name == "fitprune") {  // its published recipes are for 32 layers, and this model has 8
      EXPECT_FALSE(policy["runs"]);
      EXPECT_NE(policy["refusal"].get<std::string>().find("32 layers"), std::string::npos) << policy["refusal"];
    } else {
      EXPECT_TRUE(policy["runs"]) << name;
    }
  }
  // Of the other families: what each lacks, and nothing else, is refused.
  const std::map<std::string, std::map<std::string, std::string>> lacks = {
      {"llava_next_vicuna", {}},
      {"llava_next_mistral", {{"sliding window", "sliding window"}}},
      {"qwen25vl", {{"class attention", "class token"}}}};
  for (const auto& [family, missing] : lacks)
    for (const auto& [name, policy] : policies_of({"--model", kModel.parent_path() / family})) {
      if (name == "fitprune") continue;
      bool is_refused = false;
      for (const auto& [need, said] : missing) {
        if (policy["needs"].get<std::string>().find(need) == std::string::npos) continue;
        is_refused = true;
        EXPECT_NE(policy["refusal"].get<std::string>().find(said), std::string::npos) << policy["refusal"];
      }
      EXPECT_EQ(policy["runs"], !is_refused) << family << " " << name;
    }
  const TemporaryFolder shallow;
  json config = read_json(kModel / "config.json");
  config["text_config"]["num_hidden_layers"] = 1;
  shallow.write("config.json", config.dump());
  const auto policies = policies_of({"--model", shallow.path()});
  EXPECT_TRUE(policies.at("none")["runs"]);
  EXPECT_FALSE(policies.at("fastv")["runs"]);
  EXPECT_NE(policies.at("fastv")["refusal"].get<std::string>().find("layer"), std::string::npos);
}

// The bundled models read their pictures in layer 2 and in layer 5 (their README.md): the folders say which k of catp
// waits for it.
TEST(Policies, OfTheBundledModelsNeedNoHand) {
  const std::filesystem::path models = kGolden.parent_path().parent_path() / "models";
  const std::string demo = models / "demo", crowded = models / "crowded";
  EXPECT_EQ(policies_of({"--model", demo}).at("catp")["defaults_of_model"], (json{{"k", "3"}}));
  EXPECT_EQ(policies_of({"--model", crowded}).at("catp")["defaults_of_model"], (json{{"k", "6"}}));
  EXPECT_FALSE(policies_of({"--model", kModel}).at("catp").contains("defaults_of_model"));
  EXPECT_NE(output_of({"policies", "--model", demo}).find("    on this model: k=3\n"), std::string::npos);
  const std::string chat = kGolden.parent_path().parent_path() / "examples" / "demo" / "shape" / "messages.json";
  const json answer = json_of({"generate", "--chat", chat, "--policy", "catp:keep_ratio=2/9", "--greedy", "--json"});
  EXPECT_EQ(answer["policy"], "catp:keep_ratio=2/9,k=3");
  EXPECT_EQ(answer["points"].back()["layer"], 4);
}

}  // namespace
}  // namespace espalier::test
