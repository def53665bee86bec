// SPDX-License-Identifier: Apache-2.0
// The installed test kit on the policies of the table, as a user runs it on one of their own.
#include <algorithm>
#include <string>

#include "espalier/policies/table.h"
#include "espalier/policy_conformance.h"
#include "tests/support/made_up_files.h"

namespace espalier {
namespace {

// "prumerge+" as the name of a test.
std::string test_name(std::string name) {
  if (name.ends_with('+')) name.replace(name.size() - 1, 1, "_plus");
  return name;
}

// A policy of the table that takes keep_ratio behind `options`.
ConformingPolicy by_share(const std::string& name, const std::string& options = "") {
  ConformingPolicy policy;
  policy.name = test_name(name);
  policy.make = [name, options](Fraction ratio) {
    return make_policy(name + ":" + options + "keep_ratio=" + std::to_string(ratio.num) + "/" +
                       std::to_string(ratio.den));
  };
  return policy;
}

// The same for one that drops in three stages: each leaves the whole share.
ConformingPolicy by_stages(const std::string& name, const std::string& options = "") {
  ConformingPolicy policy;
  policy.name = name;
  policy.make = [name, options](Fraction ratio) {
    const std::string share = std::to_string(ratio.num) + "/" + std::to_string(ratio.den);
    return make_policy(name + ":" + options + "keep_ratio=" + share + ":" + share + ":" + share);
  };
  return policy;
}

std::vector<ConformingPolicy> policies() {
  std::vector<ConformingPolicy> list;
  for (const char* name :
       {"uniform", "fastv", "catp", "divprune", "cdpruner", "dart", "hired", "vispruner", "hiprune", "scope"})
    list.push_back(by_share(name));
  list.push_back(by_share("catp+", "budget=final,"));
  list.push_back(by_share("catp+"));
  list.back().name = "catp_plus_mean";
  list.back().keeps_the_share = false;  // on the average over layers
  list.push_back(by_share("attention", "layer=2,"));
  list.push_back(by_share("random"));
  list.back().treats_images_alike = false;  // it draws by the ordinal of the image
  list.push_back(by_share("plphp"));
  list.back().keeps_the_share = false;   // tokens leave caches, not the residual stream
  list.back().keeps_all_at_one = false;  // its rates move around keep_ratio
  list.push_back(by_stages("pyramiddrop"));
  list.push_back(by_stages("sparsevlm", "recycle=false,"));  // an average stands where a token left before
  for (const char* name : {"prumerge", "prumerge+", "visionzip"}) {
    list.push_back(by_share(name));
    list.back().keeps_all_at_one = false;  // tokens are merged at any ratio
    list.back().keeps_pinned = false;      // what is merged does not stay as itself
  }
  list.push_back({.name = "none", .make = [](Fraction) { return make_policy("none"); }, .keeps_the_share = false});
  list.push_back({.name = "vtw",
                  .make =
                      [](Fraction ratio) {
                        return make_policy(ratio == Fraction{1, 1} ? "vtw:layer=8" : "vtw");
                      },
                  .keeps_pinned = false});  // all image tokens leave, or none
  list.push_back({.name = "atp",
                  .make = [](Fraction) { return make_policy("atp:theta_r=0.4,theta_s=0.8"); },
                  .keeps_the_share = false,  // thresholds decide
                  .keeps_all_at_one = false,
                  .treats_images_alike = false});  // all text behind an image rates it
  return list;
}

INSTANTIATE_TEST_SUITE_P(Table, PolicyConformance, ::testing::ValuesIn(policies()), conforming_policy_name);

// Scopes and nested sets, for each example of the table.
std::vector<ConformingPolicy> examples() {
  std::vector<ConformingPolicy> list;
  for (const std::string& spec : test::examples_where([](const PolicyEntry&, const PolicyExample&) { return true; })) {
    ConformingPolicy policy;
    policy.name = test::test_name(spec);
    policy.make = [spec](Fraction) { return test::make_example(spec); };
    list.push_back(std::move(policy));
  }
  return list;
}

class TableExamples : public ::testing::TestWithParam<ConformingPolicy> {};
TEST_P(TableExamples, KeepToTheirScope) {
  EXPECT_EQ(conformance::keeps_to_its_scope(GetParam()), "");
}
TEST_P(TableExamples, KeepNestedSets) {
  EXPECT_EQ(conformance::keeps_nested_sets(GetParam()), "");
}
INSTANTIATE_TEST_SUITE_P(Table, TableExamples, ::testing::ValuesIn(examples()), conforming_policy_name);

// keepmask, resize and fitprune judge no token of a made-up run; m3 takes a number of tokens that divides the grid.
TEST(ConformanceList, IsComplete) {
  std::vector<std::string> left_out;
  const std::vector<ConformingPolicy> list = policies();
  for (const PolicyEntry& entry : policy_table()) {
    const std::string name = test_name(std::string(entry.name));
    if (std::ranges::none_of(list, [&](const ConformingPolicy& p) { return p.name == name; })) left_out.push_back(name);
  }
  EXPECT_EQ(left_out, (std::vector<std::string>{"keepmask", "m3", "fitprune", "resize"}));
}

}  // namespace
}  // namespace espalier
