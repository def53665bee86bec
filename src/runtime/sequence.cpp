// SPDX-License-Identifier: Apache-2.0
#include "runtime/sequence.h"

namespace espalier {

Sequence::Sequence(const LoadedModel& model, PackedPrompt packed, PolicyPtr policy)
    : prompt(std::move(packed)),
      walk(policy, model.facts, prompt.layout),
      kv(model.config.decoder.num_layers),
      first_position(static_cast<size_t>(model.config.decoder.num_layers)),
      stats(model.config.decoder, *prompt.layout, bytes_per_kv_row(model.config.decoder, model.dtype)),
      policy_(std::move(policy)) {}

void Sequence::start_behind(const LoadedModel& model, PrefixPtr found) {
  walk = PolicyWalk(policy_, model.facts, prompt.layout, found->walk);
  kv = found->kv;
  prefix.first_image = found->key.pictures.size();
  stats.reused(found->end);
  prefix.found = std::move(found);
}

}  // namespace espalier
