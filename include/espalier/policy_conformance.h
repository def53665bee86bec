// SPDX-License-Identifier: Apache-2.0
// A test kit for policies of one's own: the properties of policy_properties.h as cases of GoogleTest, which it needs.
// Include it in one .cpp of a test program and name the policies:
//
//   using espalier::PolicyConformance;  // GoogleTest wants the name without its namespace
//   INSTANTIATE_TEST_SUITE_P(Mine, PolicyConformance, testing::Values(espalier::ConformingPolicy{
//       .name = "mine", .make = [](espalier::Fraction keep_ratio) { return std::make_shared<Mine>(keep_ratio); }}),
//       espalier::conforming_policy_name);
//
// Espalier's own tests run it for every built-in policy.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <ostream>
#include <string>

#include "espalier/policy_properties.h"

namespace espalier {

inline std::string conforming_policy_name(const ::testing::TestParamInfo<ConformingPolicy>& info) {
  return info.param.name;
}

// What GoogleTest prints of a case that fails.
inline void PrintTo(const ConformingPolicy& policy, std::ostream* out) {
  *out << "policy " << policy.name;
}

class PolicyConformance : public ::testing::TestWithParam<ConformingPolicy> {};

TEST_P(PolicyConformance, KeepsTokensThatAreThere) {
  EXPECT_EQ(conformance::keeps_tokens_that_are_there(GetParam()), "");
}
TEST_P(PolicyConformance, KeepsText) {
  EXPECT_EQ(conformance::keeps_text(GetParam()), "");
}
TEST_P(PolicyConformance, KeepsTheShare) {
  if (!GetParam().keeps_the_share) GTEST_SKIP() << "the policy does not promise it";
  EXPECT_EQ(conformance::keeps_the_share(GetParam()), "");
}
TEST_P(PolicyConformance, KeepsTheShareOfEachImage) {
  if (!GetParam().keeps_each_share) GTEST_SKIP() << "the policy does not promise it";
  EXPECT_EQ(conformance::keeps_each_share(GetParam()), "");
}
TEST_P(PolicyConformance, KeepsAllAtOne) {
  if (!GetParam().keeps_all_at_one) GTEST_SKIP() << "the policy does not promise it";
  EXPECT_EQ(conformance::keeps_all_at_one(GetParam()), "");
}
TEST_P(PolicyConformance, KeepsPinned) {
  if (!GetParam().keeps_pinned) GTEST_SKIP() << "the policy does not promise it";
  EXPECT_EQ(conformance::keeps_pinned(GetParam()), "");
}
TEST_P(PolicyConformance, TreatsImagesAlike) {
  if (!GetParam().treats_images_alike) GTEST_SKIP() << "the policy does not promise it";
  EXPECT_EQ(conformance::treats_images_alike(GetParam()), "");
}
TEST_P(PolicyConformance, WorksWithoutImages) {
  EXPECT_EQ(conformance::works_without_images(GetParam()), "");
}
TEST_P(PolicyConformance, WorksWithOneToken) {
  EXPECT_EQ(conformance::works_with_one_token(GetParam()), "");
}
TEST_P(PolicyConformance, WorksWithSixteenImages) {
  EXPECT_EQ(conformance::works_with_sixteen_images(GetParam()), "");
}
TEST_P(PolicyConformance, WorksWithTiles) {
  EXPECT_EQ(conformance::works_with_tiles(GetParam()), "");
}
TEST_P(PolicyConformance, WorksWithEqualTokens) {
  EXPECT_EQ(conformance::works_with_equal_tokens(GetParam()), "");
}
TEST_P(PolicyConformance, KeepsToItsScope) {
  EXPECT_EQ(conformance::keeps_to_its_scope(GetParam()), "");
}
TEST_P(PolicyConformance, KeepsNestedSets) {
  EXPECT_EQ(conformance::keeps_nested_sets(GetParam()), "");
}
TEST_P(PolicyConformance, RepeatsItself) {
  EXPECT_EQ(conformance::repeats_itself(GetParam()), "");
}
TEST_P(PolicyConformance, AgreesOnCuda) {
  const std::optional<std::string> wrong = conformance::agrees_on_cuda(GetParam());
  if (!wrong) GTEST_SKIP() << "no CUDA device";
  EXPECT_EQ(*wrong, "");
}

}  // namespace espalier
