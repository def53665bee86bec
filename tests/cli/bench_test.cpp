// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <optional>
#include <sstream>

#include "tests/cli/run_espalier.h"

namespace espalier::test {
namespace {

using nlohmann::json;

TEST(Bench, OneLineAPolicyAndNumberOfShots) {
  const TemporaryFolder folder;
  const std::filesystem::path file = folder.path() / "lines.jsonl";
  const std::string table =
      output_of({"bench", "--model", kModel, "--threads", "1", "--shots", "1,2", "--repeat", "1", "--new-tokens", "2",
                 "--policy", "none", "--policy", "catp:keep_ratio=1/2", "--json", file});
  std::vector<json> rows;
  std::istringstream lines(read_whole(file));
  for (std::string line; std::getline(lines, line);) rows.push_back(json::parse(line));
  ASSERT_EQ(rows.size(), 4U);
  for (size_t i = 0; i < rows.size(); ++i) {
    EXPECT_EQ(rows[i]["policy"], i % 2 == 0 ? "none" : "catp:keep_ratio=1/2");
    EXPECT_EQ(rows[i]["shots"], i / 2 + 1);
    EXPECT_EQ(rows[i]["device"], "cpu");
    EXPECT_GT(rows[i]["time_ms"]["prefill"]["median"], 0.0);
    for (const auto& [name, value] : rows[i]["ceilings"].items()) EXPECT_GT(value, 0.0) << name;
    for (const char* op : {"attention", "linear", "rms_norm", "rope", "silu_mul"})
      EXPECT_NE(rows[i]["kernels"].value(op, ""), "") << op;
    EXPECT_NE(table.find(std::to_string(i / 2 + 1) + " shots"), std::string::npos);
  }
  EXPECT_GT(rows[2]["prompt_tokens"], rows[0]["prompt_tokens"]);
  EXPECT_LT(rows[1]["prefill_flops"], rows[0]["prefill_flops"]);
  // What only the policy runs is named too.
  EXPECT_FALSE(rows[0]["kernels"].contains("facility_location_greedy"));
  EXPECT_NE(rows[1]["kernels"].value("facility_location_greedy", ""), "");
  EXPECT_NE(rows[1]["kernels"].value("attention_growth", ""), "");
  for (const char* word : {"matrix rate", "reading", "promise", "facility_location_greedy", "1 threads"})
    EXPECT_NE(table.find(word), std::string::npos) << word;
}

// Every policy that the model runs has a row; what the row says is what the counts of its run are.
TEST(Bench, TableOfCosts) {
  const TemporaryFolder folder;
  const std::filesystem::path table = folder.path() / "costs.md", lines = folder.path() / "lines.jsonl";
  output_of({"bench", "--model", kModel, "--threads", "1", "--shots", "1", "--repeat", "1", "--new-tokens", "1",
             "--policy", "all", "--policy", "atp:theta_r=0.5,theta_s=1", "--markdown", table, "--json", lines});
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
    const std::vector<int64_t> counts = run["tokens_per_layer"];
    if (!text_tokens) text_tokens = counts.back() - 2 * 16;
    EXPECT_EQ(std::stoll(cells[3]), counts.back() - *text_tokens);
    EXPECT_NEAR(std::stod(cells[5]), 1e-9 * run["prefill_flops"].get<double>(), 0.006);
    EXPECT_NEAR(std::stod(cells[9]), run["kv_bytes"].get<double>() / 1024, 0.51) << line;
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
