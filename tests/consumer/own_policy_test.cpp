// SPDX-License-Identifier: Apache-2.0
// The example in policy_conformance.h as it stands there, with one promise less, on a policy of one's own: no "using
// namespace".
#include <espalier/policy_conformance.h>
#include <espalier/pruning.h>

#include <memory>
#include <string>

namespace {

// Keeps all.
class Mine : public espalier::PruningPolicy {
 public:
  explicit Mine(espalier::Fraction) {}
  std::string spec() const override { return "mine"; }
  std::vector<espalier::Step> steps(const espalier::ModelFacts&, const espalier::PromptLayout&) const override {
    return {};
  }
};

}  // namespace

using espalier::PolicyConformance;  // GoogleTest wants the name without its namespace
INSTANTIATE_TEST_SUITE_P(Mine, PolicyConformance,
                         testing::Values(espalier::ConformingPolicy{
                             .name = "mine",
                             .make = [](espalier::Fraction keep_ratio) { return std::make_shared<Mine>(keep_ratio); },
                             .keeps_the_share = false}),
                         espalier::conforming_policy_name);
