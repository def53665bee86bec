// SPDX-License-Identifier: Apache-2.0
#include "runtime/sequence.h"

#include <algorithm>

namespace espalier {

Sequence::Sequence(const LoadedModel& model, PackedPrompt packed, PolicyPtr policy)
    : prompt(std::move(packed)),
      walk(policy, model.facts, prompt.layout),
      kv(model.config.decoder.num_layers),
      first_position(static_cast<size_t>(model.config.decoder.num_layers)),
      stats(model.config.decoder, *prompt.layout, bytes_per_kv_row(model.config.decoder, model.dtype)),
      policy_(std::move(policy)) {}

void Sequence::follow(const LoadedModel& model, PolicyPtr policy) {
  walk = PolicyWalk(policy, model.facts, prompt.layout);
  policy_ = std::move(policy);
}

void Sequence::start_behind(const LoadedModel& model, PrefixPtr found) {
  walk = PolicyWalk(policy_, model.facts, prompt.layout, found->walk);
  kv = found->kv;
  prefix.first_image = found->key.pictures.size();
  stats.reused(found->end);
  prefix.found = std::move(found);
}

int64_t Sequence::rows_to_come(int layer) const {
  int64_t rows = most_generated - (num_decoded + 1);
  for (const StepAgain& again : walk.again())
    if (again.step().makes_room && again.step().at.layer == layer)
      rows = std::min(rows, again.step().every - 1 - (num_decoded + 1) % again.step().every);
  return std::max<int64_t>(0, rows);
}

void Sequence::go_on_from(Sequence& first) {
  std::vector<int64_t> lengths;
  for (int layer = 0; layer < first.kv.num_layers(); ++layer) lengths.push_back(first.kv.length(layer));
  kv = first.kv.share(lengths);
  walk = first.walk;
  first_position = first.first_position;
  stats.take_over(first.stats);
}

}  // namespace espalier
