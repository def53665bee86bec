// SPDX-License-Identifier: Apache-2.0
// `espalier fit` from a file of conversations to a recipe that `generate` takes.
#include <gtest/gtest.h>

#include "tests/cli/golden_case.h"
#include "tests/cli/run_espalier.h"

namespace espalier::test {
namespace {

using nlohmann::json;

class Fit : public testing::Test {
 protected:
  Arguments arguments(const std::string& policy) const {
    return {"fit",
            "--model",
            kModel,
            "--dtype",
            "f32",
            "--policy",
            policy,
            "--data",
            data_,
            "--image-folder",
            (kCases / "images").string()};
  }

  TemporaryFolder folder_;
  const std::string recipe_ = folder_ / "recipe.json";
  const std::string data_ = folder_.write("data.json", R"([
      {"image": "56x56_shapes_33.png", "conversations": [{"from": "human", "value": "<image>\nWhat is the cat doing?"},
                                                         {"from": "gpt", "value": "It sits."}]},
      {"image": "70x90_mix_31.png", "conversations": [{"from": "human", "value": "<image>\nWhere is the dog?"}]}])");
};

TEST_F(Fit, RecipesReachGenerate) {
  const GoldenCase golden("icl4");
  for (const std::string policy : {"vtw", "fitprune"}) {
    const std::string printed =
        output_of(arguments(policy) + Arguments{"--out", recipe_, "--first-layer", "2", "--eta", "1000"});
    EXPECT_NE(printed.find(policy + ":recipe=" + recipe_), std::string::npos) << printed;
    EXPECT_EQ(read_json(recipe_)["method"], policy);
    EXPECT_EQ(read_json(recipe_)["layers"], 8);
    const json result = json_of(Arguments{"generate", "--model", kModel, "--json", "--max-new-tokens", "1", "--policy",
                                          policy + ":recipe=" + recipe_} +
                                golden.prompt(folder_));
    EXPECT_FALSE(result["points"].empty());
  }
}

TEST_F(Fit, ThresholdsArePrintedAsASpec) {
  const std::string printed =
      output_of(arguments("atp:strategy=redundant") + Arguments{"--tokens", "8", "--samples", "1"});
  EXPECT_NE(printed.find("atp:strategy=redundant,theta_r="), std::string::npos) << printed;
}

TEST_F(Fit, WhatCannotBeFittedIsRefused) {
  const auto refused = [&](const Arguments& all, const char* why) {
    const Outcome outcome = run_espalier(all);
    EXPECT_EQ(outcome.status, 2);
    EXPECT_NE(outcome.err.find(why), std::string::npos) << outcome.err;
    EXPECT_FALSE(std::filesystem::exists(recipe_));
  };
  refused(arguments("fastv") + Arguments{"--out", recipe_}, "expected fitprune, vtw or atp");
  refused(arguments("vtw"), "--out is needed");
  refused(arguments("vtw") + Arguments{"--out", recipe_, "--first-layer", "8"}, "layers 0 to 7");
  refused(arguments("atp"), "atp needs --tokens");
  refused(arguments("atp") + Arguments{"--tokens", "9999"}, "thresholds reach from");
}

}  // namespace
}  // namespace espalier::test
