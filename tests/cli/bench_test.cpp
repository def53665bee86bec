// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <optional>
#include <sstream>

#include "tests/cli/run_espalier.h"
#include "tests/support/policy_plugin.h"

namespace espalier::test {
namespace {

using nlohmann::json;

std::vector<json> lines_of(const std::string& text) {
  std::vector<json> rows;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) rows.push_back(json::parse(line));
  return rows;
}

const Arguments kBench = {"bench", "--model", kModel.string(), "--threads", "1"};
const Arguments kOnce = {"--repeat", "1", "--max-repeat", "1"};

TEST(Bench, OneLinePerPolicyAndSetting) {
  const TemporaryFolder folder;
  const std::filesystem::path file = folder.path() / "lines.jsonl";
  const std::string table = output_of(kBench + kOnce +
                                      Arguments{"--shots", "1,2", "--new-tokens", "2", "--policy", "none", "--policy",
                                                "catp:keep_ratio=1/2", "--json", file});
  const std::vector<json> rows = lines_of(read_whole(file));
  ASSERT_EQ(rows.size(), 4U);
  for (size_t i = 0; i < rows.size(); ++i) {
    EXPECT_EQ(rows[i]["policy"], i % 2 == 0 ? "none" : "catp:keep_ratio=1/2");
    EXPECT_EQ(rows[i]["shots"], i / 2 + 1);
    EXPECT_EQ(rows[i]["picture_side"], 336);
    EXPECT_EQ(rows[i]["device"], "cpu");
    EXPECT_EQ(rows[i]["model"], "llava15");
    EXPECT_EQ(rows[i]["runs"], 1);
    EXPECT_GT(rows[i]["time_ms"]["prefill"]["median"], 0.0);
    EXPECT_GT(rows[i]["machine"]["matrix_flops_per_s"], 0.0);
    EXPECT_GT(rows[i]["machine"]["processors_busy"], 0.0);
    EXPECT_GE(rows[i]["machine"]["load_average"], 0.0);
    for (const char* op : {"attention", "linear", "rms_norm", "rope", "silu_mul"})
      EXPECT_NE(rows[i]["stats"]["kernels"].value(op, ""), "") << op;
    EXPECT_NE(table.find(std::to_string(i / 2 + 1) + (i < 2 ? " shot," : " shots,")), std::string::npos);
  }
  EXPECT_GT(rows[2]["stats"]["prompt_tokens"], rows[0]["stats"]["prompt_tokens"]);
  EXPECT_LT(rows[1]["stats"]["flops"]["prefill"], rows[0]["stats"]["flops"]["prefill"]);
  EXPECT_LT(rows[1]["stats"]["kv_bytes"], rows[1]["stats"]["kv_bytes_unpruned"]);
  // What only the policy runs is named too.
  EXPECT_FALSE(rows[0]["stats"]["kernels"].contains("facility_location_greedy"));
  EXPECT_NE(rows[1]["stats"]["kernels"].value("facility_location_greedy", ""), "");
  EXPECT_NE(rows[1]["stats"]["kernels"].value("attention_growth", ""), "");
  for (const char* word : {"matrix rate", "reading", "load average", "facility_location_greedy", "1 thread,"})
    EXPECT_NE(table.find(word), std::string::npos) << word;
  // Each column has its meaning below the table, and in --help.
  for (const std::string& text : {table, output_of({"bench", "--help"})})
    for (const char* word : {"encode:", "select:", "prefill:", "first token:", "ms/token:", "tokens/s:", "matrix:",
                             "memory:", "speed-up:", "expected:", "reached:", "noisy:"})
      EXPECT_NE(text.find(word), std::string::npos) << word;
}

// One meaning everywhere: encode, select and prefill; and `generate` calls its parts the same.
TEST(Bench, FirstTokenIsWithEncode) {
  const TemporaryFolder folder;
  const std::filesystem::path table = folder.path() / "costs.md";
  const std::vector<json> rows =
      lines_of(output_of(kBench + kOnce +
                         Arguments{"--shots", "2", "--policy", "none", "--policy", "fastv:keep_ratio=1/2,layer=3",
                                   "--json", "--markdown", table}));
  ASSERT_EQ(rows.size(), 2U);
  const std::string markdown = read_whole(table);
  for (const json& row : rows) {
    const auto ms = [&](const char* stage) { return row["time_ms"][stage]["median"].get<double>(); };
    EXPECT_GT(ms("encode"), 0);
    EXPECT_DOUBLE_EQ(ms("first_token"), ms("encode") + ms("select") + ms("prefill"));
    EXPECT_DOUBLE_EQ(ms("select_prefill"), ms("select") + ms("prefill"));
    char text[32];
    std::snprintf(text, sizeof text, "| %.1f |", ms("first_token"));
    EXPECT_NE(markdown.find(text), std::string::npos) << text << markdown;
    EXPECT_EQ(row["stats"]["time_ms"].size(), 4U);
  }
}

// Runs go on until the medians are known, within bounds.
TEST(Bench, RepeatsUntilTheIntervalIsNarrow) {
  const Arguments fixed = kBench + Arguments{"--shots", "0", "--policy", "none", "--json"};
  const auto runs = [&](const Arguments& more) { return lines_of(output_of(fixed + more)).at(0); };
  EXPECT_EQ(runs({"--repeat", "2", "--max-noise", "1"})["runs"], 2);
  EXPECT_EQ(runs({"--repeat", "2", "--max-repeat", "4", "--max-noise", "1e-9"})["runs"], 4);
  EXPECT_EQ(runs({"--repeat", "2", "--max-noise", "1e-9"})["runs"], 6);
  const json row = runs({"--repeat", "8"});
  const json& first = row["time_ms"]["first_token"];
  for (const char* smaller : {"min", "low"}) EXPECT_LE(first[smaller], first["median"]);
  for (const char* greater : {"max", "high"}) EXPECT_GE(first[greater], first["median"]);
  EXPECT_LE(first["min"], first["low"]);
  EXPECT_LE(row["runs"], 24);
  const double half = (first["high"].get<double>() - first["low"].get<double>()) / 2;
  EXPECT_GE(row["noise"].get<double>() * first["median"].get<double>(), half - 1e-9);
  EXPECT_TRUE(row["noisy"].is_boolean());
  const Outcome outcome = run_espalier(fixed + Arguments{"--repeat", "4", "--max-repeat", "3"});
  EXPECT_EQ(outcome.status, 2);
  EXPECT_NE(outcome.err.find("--max-repeat: expected --repeat (4) or more, got 3"), std::string::npos) << outcome.err;
}

// A prompt of one's own, and axes: every combination is a setting.
TEST(Bench, OwnPromptAndAxes) {
  const std::string picture = (kCases / "images" / "56x56_shapes_33.png").string();
  const Arguments own = kBench + kOnce + Arguments{"--policy", "none", "--image", picture, "--prompt", "What is it?"};
  const std::vector<json> rows =
      lines_of(output_of(own + Arguments{"--requests", "1,2", "--new-tokens", "2,3", "--json"}));
  ASSERT_EQ(rows.size(), 4U);
  const json alone = json_of({"generate", "--model", kModel.string(), "--image", picture, "--prompt", "What is it?",
                              "--max-new-tokens", "2", "--ignore-eos", "--json"});
  for (size_t i = 0; i < rows.size(); ++i) {
    EXPECT_EQ(rows[i]["requests"], i / 2 + 1);
    EXPECT_EQ(rows[i]["new_tokens"], i % 2 + 2);
    EXPECT_EQ(rows[i]["stats"]["prompt_tokens"], alone["stats"]["prompt_tokens"]);
    EXPECT_EQ(rows[i]["shots"], nullptr);
    EXPECT_GT(rows[i]["tokens_per_s"]["decode"], 0.0);
    EXPECT_GE(rows[i]["time_ms"]["whole"]["median"], rows[i]["time_ms"]["first_token"]["median"]);
  }
  // Where a model takes pictures as large as they are, larger ones have more tokens.
  const std::vector<json> sides =
      lines_of(output_of({"bench", "--model", (kGolden / "qwen2vl").string(), "--policy", "none", "--repeat", "1",
                          "--max-repeat", "1", "--shots", "0", "--side", "56,112", "--json"}));
  ASSERT_EQ(sides.size(), 2U);
  EXPECT_EQ(sides[1]["picture_side"], 112);
  EXPECT_LT(sides[0]["stats"]["image_tokens"][0], sides[1]["stats"]["image_tokens"][0]);
  const Outcome outcome = run_espalier(own + Arguments{"--shots", "4"});
  EXPECT_EQ(outcome.status, 2);
  EXPECT_NE(outcome.err.find("--shots and --side are of the drawn prompt"), std::string::npos) << outcome.err;
}

// Policies of one's own are timed like any other, also in sequence with others.
TEST(Bench, PolicyOfAPlugin) {
  const std::vector<json> rows = lines_of(
      output_of(kBench + kOnce +
                Arguments{"--shots", "0", "--policy-plugin", policy_plugin().string(), "--policy", "none", "--policy",
                          "keep_centre:share=1/2", "--policy", "keep_centre:share=1/2 + vtw:layer=4", "--json"}));
  ASSERT_EQ(rows.size(), 3U);
  const auto entering = [&](size_t row, size_t layer) {
    return rows[row]["stats"]["image_tokens_per_layer"][layer][0].get<int>();
  };
  EXPECT_EQ(entering(0, 7), 16);
  EXPECT_EQ(entering(1, 7), 4) << "of 4 x 4 patches the middle 2 x 2";
  EXPECT_EQ(entering(2, 0), 4);
  EXPECT_EQ(entering(2, 7), 0);
}

TEST(Bench, InterruptKeepsWhatIsFinished) {
  const TemporaryFolder folder;
  const std::filesystem::path file = folder.path() / "lines.jsonl";
  EspalierProcess process(kBench + Arguments{"--shots", "0,1", "--policy", "none", "--repeat", "1000", "--new-tokens",
                                             "64,1", "--json", file});
  // The first setting takes the time of a thousand runs, minutes: it is met in it however busy the machine is.
  ::usleep(8'000'000);
  process.interrupt();
  const Outcome outcome = process.wait();
  EXPECT_EQ(outcome.status, 130);
  EXPECT_NE(outcome.err.find("interrupted; what was measured is kept"), std::string::npos) << outcome.err;
  const std::vector<json> rows = lines_of(read_whole(file));
  ASSERT_GE(rows.size(), 1U);
  EXPECT_EQ(rows.back()["complete"], false);
  EXPECT_GE(rows.back()["runs"], 1);
  EXPECT_LT(rows.back()["runs"], 1000);
  EXPECT_NE(outcome.out.find("0 shots,"), std::string::npos);
}

// Every policy that the model runs has a row; what the row says is what the counts of its run are.
TEST(Bench, TableOfCosts) {
  const TemporaryFolder folder;
  const std::filesystem::path table = folder.path() / "costs.md", lines = folder.path() / "lines.jsonl";
  output_of({"bench",
             "--model",
             kModel,
             "--threads",
             "1",
             "--shots",
             "1",
             "--repeat",
             "1",
             "--max-repeat",
             "1",
             "--new-tokens",
             "1",
             "--policy",
             "all",
             "--policy",
             "atp:theta_r=0.5,theta_s=1",
             "--markdown",
             table,
             "--json",
             lines});
  std::map<std::string, std::vector<std::string>> rows;  // cells by policy
  std::vector<std::string> order;
  std::istringstream text(read_whole(table));
  for (std::string line; std::getline(text, line);) {
    if (!line.starts_with("| `")) continue;
    std::vector<std::string> cells;
    std::istringstream parts(line);
    for (std::string cell; std::getline(parts, cell, '|');) cells.push_back(cell);
    ASSERT_EQ(cells.size(), 11U) << line;
    order.push_back(cells[1].substr(2, cells[1].size() - 4));
    rows[order.back()] = cells;
  }
  ASSERT_FALSE(order.empty());
  EXPECT_EQ(order.front(), "none");
  const auto name_of = [](const std::string& spec) { return spec.substr(0, spec.find(':')); };
  const std::string whole = read_whole(table);
  for (const json& policy : json_of({"policies", "--json"})["policies"]) {
    const std::string name = policy["name"];
    const bool has_row = std::ranges::any_of(order, [&](const std::string& spec) { return name_of(spec) == name; });
    const size_t left_out = whole.find("Left out: ");
    ASSERT_NE(left_out, std::string::npos);
    EXPECT_NE(has_row, whole.find(name + " (", left_out) != std::string::npos) << name;
  }
  std::istringstream runs(read_whole(lines));
  std::optional<int64_t> text_tokens;  // all but the two pictures of the first run
  for (std::string line; std::getline(runs, line);) {
    const json run = json::parse(line);
    const std::vector<std::string>& cells = rows.at(run["policy"]);
    const std::vector<int64_t> counts = run["stats"]["tokens_per_layer"];
    if (!text_tokens) text_tokens = counts.back() - 2 * 16;
    EXPECT_EQ(std::stoll(cells[3]), counts.back() - *text_tokens);
    EXPECT_NEAR(std::stod(cells[5]), 1e-9 * run["stats"]["flops"]["prefill"].get<double>(), 0.006);
    EXPECT_NEAR(std::stod(cells[9]), run["stats"]["kv_bytes"].get<double>() / 1024, 0.51) << line;
  }
  // plphp: every layer's cache is shorter, in each KV head by as much, and no layer computes less.
  EXPECT_EQ(rows.at("plphp:keep_ratio=2/9")[3], " 32 ");
  EXPECT_EQ(rows.at("plphp:keep_ratio=2/9")[6], " 100 % ");
  EXPECT_LT(std::stoll(rows.at("plphp:keep_ratio=2/9")[9]), std::stoll(rows.at("none")[9]));
  for (const char* word : {"*last*", "*mean*", "*Prefill*", "*KV*", "keepmask (", "fitprune ("})
    EXPECT_NE(whole.find(word), std::string::npos) << word;
}

TEST(Bench, ShotsThatAreNoNumbers) {
  for (const char* shots : {"1,", ",1", "a", "-1", "65", "1;2", "1, 2"}) {
    const Outcome outcome = run_espalier({"bench", "--model", kModel, "--shots", shots});
    EXPECT_NE(outcome.status, 0) << shots;
    EXPECT_NE(outcome.err.find("--shots: expected whole numbers from 0 up to 64"), std::string::npos) << outcome.err;
  }
}

}  // namespace
}  // namespace espalier::test
