// SPDX-License-Identifier: Apache-2.0
// One request on its way through the model: everything about it that changes, its rows of the cache among it. A batch
// is a list of these.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "layout/generated_rows.h"
#include "layout/policy_walk.h"
#include "runtime/kv_arena.h"
#include "runtime/loaded_model.h"
#include "runtime/prefix_cache.h"
#include "runtime/prompt_packer.h"
#include "runtime/run_watcher.h"
#include "runtime/stats_recorder.h"
#include "runtime/stream.h"

namespace espalier {

// How a sequence stands to the prefix cache.
struct PrefixUse {
  PrefixPtr found;         // only the rows behind it run, until its depth
  size_t first_image = 0;  // behind it
  // What is to be made for others: of the tokens before each of `ends`, where an example begins; ascending.
  std::vector<PrefixEnd> ends;
  int depth = 0;
  std::vector<int64_t> rows;                  // of the stream that are before each end; empty: to be counted
  std::vector<std::vector<int64_t>> lengths;  // [end][layer so far] rows before it, those of `found` among them
  std::vector<at::Tensor> images;             // [layer so far] of the rows before the last end
  std::vector<PrefixPtr> made;                // one for each end
};

struct Sequence {
  // Throws Error for a policy that the model or the prompt cannot serve.
  Sequence(const LoadedModel& model, PackedPrompt packed, PolicyPtr policy);

  PackedPrompt prompt;
  PolicyWalk walk;
  Stream stream;  // from encode to the end of prefill; a pass over several sequences holds their rows meanwhile
  SequenceKv kv;
  std::map<int, ops::AttendedLayer> traces;  // by decoder layer
  std::vector<int64_t> first_position;  // of the first generated token, by layer (layers differ with positions=compact)
  int64_t num_decoded = 0;              // generated tokens whose rows are in the cache
  int64_t room = 0;                     // rows that may follow the prompt, as far as they are made ahead
  int64_t most_generated = std::numeric_limits<int64_t>::max();  // tokens whose rows may come
  GeneratedRows generated;                                       // attention that steps of the policy wait for
  StatsRecorder stats;
  std::shared_ptr<const PruningPolicy> custom;  // the policy, where it is the caller's own
  std::string salt;                             // of the request
  std::vector<ImageCache::Key> picture_keys;    // where prefixes are looked for
  PrefixUse prefix;
  RunWatcher* watcher = nullptr;
  std::function<void()> on_acted = {};  // behind each act of the policy; its time counts in no stage

  // Before it has begun: under another policy, which leaves the pictures' shape as it is.
  void follow(const LoadedModel& model, PolicyPtr policy);
  // Before it has begun: runs behind `found`.
  void start_behind(const LoadedModel& model, PrefixPtr found);

  // Over the rows that the prefill of `first` left, which both share from now on.
  void go_on_from(Sequence& first);

  int64_t position_at(int layer) const { return first_position[static_cast<size_t>(layer)] + num_decoded; }
  // While decoding: rows that may follow the newest token's in a layer before it is cut again.
  int64_t rows_to_come(int layer) const;

 private:
  PolicyPtr policy_;
};

}  // namespace espalier
