// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

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

TEST(Bench, ShotsThatAreNoNumbers) {
  for (const char* shots : {"1,", ",1", "a", "-1", "65", "1;2", "1, 2"}) {
    const Outcome outcome = run_espalier({"bench", "--model", kModel, "--shots", shots});
    EXPECT_NE(outcome.status, 0) << shots;
    EXPECT_NE(outcome.err.find("--shots: expected whole numbers from 0 up to 64"), std::string::npos) << outcome.err;
  }
}

}  // namespace
}  // namespace espalier::test
