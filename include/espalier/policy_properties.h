// SPDX-License-Identifier: Apache-2.0
// What every pruning policy must hold, as functions that run a policy on made-up prompts and signals, without a model.
// policy_conformance.h makes GoogleTest cases of them; this header needs no test framework.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "espalier/policies/amount.h"
#include "espalier/pruning.h"

namespace espalier {

// A model of 8 layers with 4 heads over 2 KV heads, a vision tower of 4 layers with a class token, and a text tower.
ModelFacts conformance_model();

// A policy as the kit asks for it, and what it promises.
struct ConformingPolicy {
  std::string name;  // letters, digits and underscores
  // The policy that keeps this share of the image tokens, in (0, 1].
  std::function<PolicyPtr(Fraction keep_ratio)> make;
  // Promises that not every method makes. Without one its test is skipped.
  bool keeps_the_share = true;      // no more tokens in all than the shares of each image, rounded up, add up to
  bool keeps_all_at_one = true;     // acts nowhere at keep_ratio 1
  bool keeps_pinned = true;         // tokens that the user pinned stay, if the share has room for them
  bool treats_images_alike = true;  // images that change places take their verdicts along
  bool keeps_each_share = false;    // no image is left with less than its own share, rounded down: one that ranks the
                                    // tokens of all images together may spend everything on one of them
  ModelFacts model = conformance_model();
};

namespace conformance {

// Each runs one property and returns what is wrong, empty if nothing is.
std::string keeps_tokens_that_are_there(
    const ConformingPolicy& policy);  // ascending, of those left by the point before
std::string keeps_text(const ConformingPolicy& policy);
std::string keeps_the_share(const ConformingPolicy& policy);
std::string keeps_each_share(const ConformingPolicy& policy);
std::string keeps_all_at_one(const ConformingPolicy& policy);
std::string keeps_pinned(const ConformingPolicy& policy);
std::string treats_images_alike(const ConformingPolicy& policy);
std::string works_without_images(const ConformingPolicy& policy);
std::string works_with_one_token(const ConformingPolicy& policy);
std::string works_with_sixteen_images(const ConformingPolicy& policy);
std::string works_with_tiles(const ConformingPolicy& policy);         // any-resolution crops and row breaks
std::string works_with_equal_tokens(const ConformingPolicy& policy);  // all alike; all zero
// A step with a scope narrower than the request: its verdict about a token stays when all changes that lies outside.
std::string keeps_to_its_scope(const ConformingPolicy& policy);
// A step that says so: what a smaller budget keeps is part of what a larger one keeps.
std::string keeps_nested_sets(const ConformingPolicy& policy);
std::string repeats_itself(const ConformingPolicy& policy);  // alone, again, and in turn with another sequence
// Nothing on a machine without a GPU.
std::optional<std::string> agrees_on_cuda(const ConformingPolicy& policy);

}  // namespace conformance

}  // namespace espalier
