// SPDX-License-Identifier: Apache-2.0
// The installed test kit on a plugin's policy.
#include <espalier/error.h>
#include <espalier/policy_conformance.h>
#include <espalier/policy_plugin.h>

#include <string>

namespace {

using namespace espalier;

ConformingPolicy keep_centre() {
  return {.name = "keep_centre",
          .make =
              [](Fraction ratio) {
                return PolicyPlugin::load(POLICY).make("keep_centre:share=" +
                                                       std::to_string(double(ratio.num) / double(ratio.den)));
              },
          .keeps_the_share = false,  // its share is of each side
          .keeps_pinned = false};
}

INSTANTIATE_TEST_SUITE_P(Plugin, PolicyConformance, testing::Values(keep_centre()), conforming_policy_name);

// What GoogleTest prints of a case that fails.
TEST(ConformingPolicyTest, IsPrintedByItsName) {
  EXPECT_EQ(testing::PrintToString(keep_centre()), "policy keep_centre");
}

TEST(PolicyPlugin, SaysWhatIsWrong) {
  const PolicyPlugin plugin = PolicyPlugin::load(POLICY);
  EXPECT_EQ(plugin.name(), "keep_centre");
  EXPECT_THROW(plugin.make("keep_centre:share=2"), Error);
  EXPECT_THROW(plugin.make("keep_centre:width=1"), Error);
  EXPECT_THROW(plugin.make("fastv:keep_ratio=1/2"), Error);
  EXPECT_THROW(plugin.make("keep_centre + fastv:keep_ratio=1/2"), Error);
  EXPECT_THROW(PolicyPlugin::load("/nowhere.so"), Error);
  EXPECT_THROW(PolicyPlugin::load(__FILE__), Error);
}

}  // namespace
