// SPDX-License-Identifier: Apache-2.0
// From measuring to a request with a target, through the command line.
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/cli/golden_case.h"
#include "tests/cli/run_espalier.h"

namespace espalier::test {
namespace {

using nlohmann::json;

const Arguments kModelOptions = {"--model", kModel.string(), "--dtype", "f32"};
const Arguments kPrompt = {"--raw-prompt", "<image> What is this?", "--greedy", "--max-new-tokens", "2", "--json"};

Arguments generate(const std::string& policy, const std::string& costs = {}) {
  const std::string picture = (kCases / GoldenCase("single").json["image_files"][0]).string();
  return Arguments{"generate"} + kModelOptions + kPrompt + Arguments{"--image", picture, "--policy", policy} +
         (costs.empty() ? Arguments() : Arguments{"--costs", costs});
}

TEST(Calibrate, MeasuresWhatRequestsWithATimeNeed) {
  const TemporaryFolder folder;
  const std::string costs = folder / "costs.json";
  const std::string said = output_of(Arguments{"calibrate"} + kModelOptions +
                                     Arguments{"--policy", "divprune", "--passes", "3", "--out", costs});
  EXPECT_NE(said.find(costs), std::string::npos) << said;
  const json written = read_json(costs);
  EXPECT_EQ(written["format"], "espalier costs");
  EXPECT_EQ(written["costs"][0]["passes"], 5 * 3);
  EXPECT_TRUE(written["costs"][0]["select"].contains("divprune"));

  const json quick = json_of(generate("divprune:ttft=1000s", costs))["stats"]["solved"];
  EXPECT_EQ(quick["policy"], "none");
  EXPECT_EQ(quick["fits"], true);
  EXPECT_GT(quick["predicted_ms"], 0.0);
  const json late = json_of(generate("divprune:ttft=0.000001ms", costs))["stats"]["solved"];
  EXPECT_EQ(late["fits"], false);

  const std::string lines = output_of(Arguments{"calibrate"} + kModelOptions +
                                      Arguments{"--policy", "divprune", "--costs", costs, "--check", "4"});
  EXPECT_EQ(std::ranges::count(lines, '\n'), 4);
  const json first = json::parse(lines.substr(0, lines.find('\n')));
  EXPECT_GT(first["predicted_ms"], 0.0);
  EXPECT_GT(first["measured_ms"], 0.0);
}

TEST(Calibrate, WithoutItATimeIsRefusedAndBytesAreNot) {
  const Outcome outcome = run_espalier(generate("divprune:ttft=1s"));
  EXPECT_EQ(outcome.status, 2);
  EXPECT_NE(outcome.err.find("espalier calibrate"), std::string::npos) << outcome.err;
  const json stats = json_of(generate("divprune:kv=1GB"))["stats"];
  EXPECT_EQ(stats["solved"]["policy"], "none");
  EXPECT_FALSE(stats["solved"].contains("predicted_ms"));
}

}  // namespace
}  // namespace espalier::test
