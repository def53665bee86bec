// SPDX-License-Identifier: Apache-2.0
// Slices of the accuracy tables under bench/results, asked again of the bundled models: the first items of some cells
// under some policies must come out as their tables say, within what so few items can tell, at the same cost.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <string>
#include <utility>

#include "tests/cli/golden_case.h"
#include "tests/cli/run_espalier.h"
#include "tests/support/folders.h"

namespace espalier::test {
namespace {

using nlohmann::json;

std::map<std::pair<std::string, std::string>, json> by_policy_and_cell(const json& table) {
  std::map<std::pair<std::string, std::string>, json> rows;
  for (const json& row : table["cells"])
    if (!row["control"].get<bool>())
      rows[{row["policy"], row["suite"].get<std::string>() + "/" + row["cell"].get<std::string>()}] = row;
  return rows;
}

// How far apart two shares of right answers may lie when both come from one probability: four and a half standard
// errors, and one answer for the rounding of small counts.
double allowed_distance(const json& a, const json& b) {
  const double n = a["n"], m = b["n"];
  const double p = (a["correct"].get<double>() + b["correct"].get<double>() + 1) / (n + m + 2);
  return 4.5 * std::sqrt(p * (1 - p) * (1 / n + 1 / m)) + 1 / m;
}

void expect_again(const char* file, const Arguments& policies, const Arguments& cells) {
  const json table = read_json(source_folder().string() + "/bench/results/" + file);
  Arguments call = {"eval", "--items", "20", "--no-controls", "--json"};
  for (const std::string& policy : policies) call.insert(call.end(), {"--policy", policy});
  for (const std::string& cell : cells) call.insert(call.end(), {"--suite", cell});
  const json slice = json::parse(output_of(call));
  EXPECT_EQ(slice["seed"], table["seed"]);
  const auto expected = by_policy_and_cell(table), got = by_policy_and_cell(slice);
  ASSERT_EQ(got.size(), cells.size() * (policies.size() + 1));
  for (const auto& [name, row] : got) {
    SCOPED_TRACE(name.first + " on " + name.second);
    ASSERT_TRUE(expected.contains(name));
    const json& published = expected.at(name);
    const auto share = [](const json& r) { return r["correct"].get<double>() / r["n"].get<double>(); };
    EXPECT_NEAR(share(row), share(published), allowed_distance(published, row));
    EXPECT_NEAR(row["tokens_mean"].get<double>(), published["tokens_mean"].get<double>(), 0.05);
    EXPECT_NEAR(row["flops"].get<double>() / published["flops"].get<double>(), 1.0, 0.01);
  }
}

TEST(AccuracyTables, ASliceComesOutAgain) {
  expect_again("2026-11-29_accuracy/policies.json",
               {"random:keep_ratio=2/9", "divprune:keep_ratio=2/9", "fastv:keep_ratio=2/9,layer=3",
                "catp:keep_ratio=2/9,k=3", "m3:keep_ratio=1/4", "vtw:layer=3", "oracle:keep_ratio=2/9"},
               {"detail/spot", "bind/shape-2x1", "define/colour-of"});
}

TEST(AccuracyTables, ASliceOfTheCrowdedOnesComesOutAgain) {
  expect_again("2026-12-01_crowded/crowded_main.json",
               {"oracle:keep_ratio=1/9", "divprune:keep_ratio=1/9", "fastv:keep_ratio=2/9,layer=3",
                "catp:keep_ratio=2/9,k=3", "catp+:keep_ratio=1/9,k=3"},
               {"crowded/spot-of", "in-context/shape-3", "screens/changed"});
}

}  // namespace
}  // namespace espalier::test
