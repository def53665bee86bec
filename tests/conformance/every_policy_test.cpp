// SPDX-License-Identifier: Apache-2.0
// The installed test kit on the policies of the table, as a user runs it on one of their own.
#include <algorithm>
#include <array>
#include <string>
#include <string_view>

#include "espalier/policies/table.h"
#include "espalier/policy_conformance.h"
#include "tests/support/made_up_files.h"

namespace espalier {
namespace {

// A spec whose amount is open.
ConformingPolicy by_share(std::string_view name, const std::string& open) {
  ConformingPolicy policy;
  policy.name = test::test_name(std::string(name));
  policy.make = [open](Fraction ratio) {
    const std::string share = "keep_ratio=" + std::to_string(ratio.num) + "/" + std::to_string(ratio.den);
    return make_policy(std::string(open).replace(open.find('@'), 1, share));
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

// Those that promise less, or take their amount in another form.
std::vector<ConformingPolicy> other_policies() {
  std::vector<ConformingPolicy> list;
  list.push_back(by_share("catp+", "catp+:budget=final,@"));
  list.push_back(by_share("catp+ mean", "catp+:@"));
  list.back().keeps_the_share = false;  // on the average over layers
  list.push_back(by_share("random", "random:@"));
  list.back().treats_images_alike = false;  // it draws by the ordinal of the image
  list.push_back(by_share("plphp", "plphp:@"));
  list.back().keeps_the_share = false;   // tokens leave caches, not the residual stream
  list.back().keeps_all_at_one = false;  // its rates move around keep_ratio
  list.push_back(by_share("persistence", "persistence:@"));
  list.back().keeps_the_share = false;
  list.push_back({.name = "visionpulse",
                  .make = [](Fraction) { return make_policy("visionpulse"); },
                  .keeps_the_share = false,
                  .keeps_all_at_one = false});  // how much the anchor looks decides
  list.push_back(by_stages("pyramiddrop"));
  list.push_back(by_stages("sparsevlm", "recycle=false,"));  // an average stands where a token left before
  for (const char* name : {"prumerge", "prumerge+", "visionzip"}) {
    list.push_back(by_share(name, std::string(name) + ":@"));
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

// keepmask, resize and fitprune judge no token of a made-up run; m3 takes a number of tokens that divides the grid. All
// others are asked for all that the kit can ask, with their default options.
std::vector<ConformingPolicy> policies() {
  std::vector<ConformingPolicy> list = other_policies();
  for (const PolicyEntry& entry : policy_table()) {
    const std::string name = test::test_name(std::string(entry.name));
    const bool is_left_out = std::ranges::count(std::array{"keepmask", "m3", "fitprune", "resize"}, entry.name) > 0;
    if (is_left_out || std::ranges::count(list, name, &ConformingPolicy::name) > 0) continue;
    list.push_back(by_share(entry.name, std::string(entry.name) + (entry.name == "attention" ? ":layer=2,@" : ":@")));
    list.back().keeps_each_share =
        std::ranges::count(std::array{"uniform", "divprune", "cdpruner", "vispruner", "hiprune", "scope"}, entry.name) >
        0;
  }
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

}  // namespace
}  // namespace espalier
