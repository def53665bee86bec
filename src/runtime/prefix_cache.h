// SPDX-License-Identifier: Apache-2.0
// What of a prompt's beginning may be used again, and under which policy. A prefix ends where an example begins; what
// one request computed is known by each such end, so that another may share a part of its examples. Below
// its boundary, the first step of the policy that may look at the whole request, everything about it follows from the
// prefix alone: which tokens stay, the cached rows of each layer, and the states of its tokens at the boundary. All of
// that is kept. A request that begins with the same tokens and pictures runs only what stands behind them up to the
// boundary; from there on all tokens run, and the policy decides anew, so that other tokens may survive this time.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "espalier/ops.h"
#include "layout/policy_walk.h"
#include "runtime/image_cache.h"
#include "runtime/kv_arena.h"
#include "runtime/stream.h"

namespace espalier {

struct Sequence;

// What a prefix is known by, beside what PolicyWalk::fits() compares: the layout and the steps of the policy.
struct PrefixKey {
  std::vector<int32_t> ids;               // placeholders expanded
  std::vector<ImageCache::Key> pictures;  // digest of the pixels, and what is made of them
  std::string policy;                     // its spec
  std::string salt;                       // separates tenants
  bool operator==(const PrefixKey&) const = default;
};

struct CachedPrefix {
  PrefixKey key;
  int64_t end = 0;   // tokens of the unpruned prompt
  int depth = 0;     // the layer that the states enter; the number of layers where no step looks at the request
  SequenceKv kv{0};  // of layers 0 … depth - 1
  Stream stream;     // states that enter layer `depth`; empty behind the last
  std::map<int, ops::AttendedLayer> traces;  // after RoPE, of layers below that the step at the boundary reads
  std::shared_ptr<const PrefixWalk> walk;
  std::vector<at::Tensor> image_of_tokens;  // [layer below depth]: image of each token that entered, -1 for text
  // A policy of the caller's own is known by its object and no other; kept, so that no other takes its address.
  std::shared_ptr<const PruningPolicy> custom;
  int64_t bytes = 0;
};
using PrefixPtr = std::shared_ptr<const CachedPrefix>;

// Bounded in bytes; least recently used goes first. What a request or a session still holds lives on, but is found no
// more once it was let go. For the thread that computes.
class PrefixCache {
 public:
  using Hash = std::function<size_t(const PrefixKey&)>;

  explicit PrefixCache(int64_t max_bytes, Hash hash = {});

  // The longest known prefix of a sequence that has not begun, or nothing. `also`: prefixes that the caller holds.
  PrefixPtr find(const Sequence& sequence, std::span<const PrefixPtr> also = {});
  // One beginning, cut at each example: prefixes of one computation, which share their memory; shortest first. They
  // stay and go together. Larger than the whole cache: not kept.
  void keep(const std::vector<PrefixPtr>& ends);

  struct Counts {
    int64_t hits = 0, misses = 0;  // of sequences that have a beginning to look for
    int64_t reused_tokens = 0;
    int64_t bytes = 0;
  };
  const Counts& counts() const { return counts_; }

 private:
  using Entry = std::vector<PrefixPtr>;
  struct Place {
    std::list<Entry>::iterator entry;
    PrefixPtr prefix;  // one of its own
  };
  bool knows(const CachedPrefix& prefix) const;
  void drop_last();

  int64_t max_bytes_;
  Hash hash_;
  std::list<Entry> entries_;  // last used first
  std::unordered_multimap<size_t, Place> places_;
  Counts counts_;
};

// ---- where prefixes may end ----

struct PrefixEnd {
  int64_t token = 0;  // source index where `example` begins
  int example = 0;
};
// Ascending. Beginnings of a few words without a picture are left out: they are sooner computed than looked for.
std::vector<PrefixEnd> prefix_ends(const PromptLayout& prompt);
// The layer that the states of a prefix enter under the walk's policy; 0: nothing is worth keeping.
int boundary_depth(const PolicyWalk& walk, int num_layers);
PrefixKey key_of_prefix(const Sequence& sequence, int64_t end);

}  // namespace espalier
