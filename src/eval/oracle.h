// SPDX-License-Identifier: Apache-2.0
// The ceiling of the benchmark: a policy that knows the scene. Before the decoder it keeps of each image the patches of
// what the answer is read from, then those of other objects and spots, then the rest (synth::by_need). Not a policy
// for users: it reads the answer key.
#pragma once

#include <memory>
#include <optional>
#include <string_view>

#include "espalier/policies/amount.h"
#include "espalier/pruning.h"
#include "synth/items.h"

namespace espalier::eval {

// `knows=question` hides the other objects of a crowded picture, so that less is left to confuse: a model can do better
// than unpruned. `knows=scene` gives all objects and spots of a picture their turn, whatever is asked.
struct OracleOptions {
  Amount amount;  // of each image
  bool knows_question = true;
};

// Of a spec string `oracle:keep_ratio=…[,knows=scene]`; nothing when it names another policy. Throws Error for other
// options.
std::optional<OracleOptions> parse_oracle(std::string_view spec);

// For requests whose images are the turns of `item`, at one token per patch.
PolicyPtr make_oracle(const OracleOptions& options, std::shared_ptr<const synth::Item> item);

}  // namespace espalier::eval
