// SPDX-License-Identifier: Apache-2.0
#include "runtime/prefix_cache.h"

#include <algorithm>
#include <string_view>

#include "runtime/sequence.h"

namespace espalier {

namespace {

size_t combined(size_t seed, size_t value) {
  return seed ^ (value + 0x9e3779b97f4a7c15 + (seed << 6) + (seed >> 2));
}

size_t hash_of(const PrefixKey& key) {
  const std::hash<std::string_view> text;
  size_t hash = text({reinterpret_cast<const char*>(key.ids.data()), key.ids.size() * sizeof(int32_t)});
  for (const ImageCache::Key& picture : key.pictures) hash = combined(hash, text(picture.first));
  return combined(combined(hash, text(key.policy)), text(key.salt));
}

bool serves(const CachedPrefix& prefix, const PrefixKey& key, const Sequence& sequence) {
  return prefix.key == key && prefix.custom == sequence.custom &&
         prefix.depth == boundary_depth(sequence.walk, sequence.kv.num_layers()) && sequence.walk.fits(*prefix.walk);
}

}  // namespace

PrefixCache::PrefixCache(int64_t max_bytes, Hash hash)
    : max_bytes_(max_bytes), hash_(hash ? std::move(hash) : hash_of) {}

PrefixPtr PrefixCache::find(const Sequence& sequence, std::span<const PrefixPtr> also) {
  const std::vector<PrefixEnd> ends = prefix_ends(*sequence.prompt.layout);
  if (ends.empty()) return nullptr;
  PrefixPtr found;
  for (auto end = ends.rbegin(); end != ends.rend() && !found; ++end) {
    const PrefixKey key = key_of_prefix(sequence, end->token);
    for (const PrefixPtr& held : also)
      if (held && held->end == end->token && serves(*held, key, sequence)) found = held;
    const auto [first, last] = places_.equal_range(hash_(key));
    for (auto place = first; place != last && !found; ++place) {
      if (!serves(*place->second.prefix, key, sequence)) continue;
      found = place->second.prefix;
      entries_.splice(entries_.begin(), entries_, place->second.entry);
    }
  }
  ++(found ? counts_.hits : counts_.misses);
  if (found) counts_.reused_tokens += found->end;
  return found;
}

bool PrefixCache::knows(const CachedPrefix& prefix) const {
  const auto [first, last] = places_.equal_range(hash_(prefix.key));
  return std::any_of(first, last, [&](const auto& place) {
    const CachedPrefix& other = *place.second.prefix;
    return other.key == prefix.key && other.custom == prefix.custom && other.depth == prefix.depth;
  });
}

void PrefixCache::keep(const std::vector<PrefixPtr>& ends) {
  if (ends.empty() || ends.back()->bytes > max_bytes_ || knows(*ends.back())) return;
  while (counts_.bytes + ends.back()->bytes > max_bytes_) drop_last();
  entries_.push_front(ends);
  counts_.bytes += ends.back()->bytes;  // also where there is no memory for places, and nobody finds it until it goes
  for (const PrefixPtr& prefix : ends)
    if (!knows(*prefix)) places_.emplace(hash_(prefix->key), Place{entries_.begin(), prefix});
}

void PrefixCache::drop_last() {
  const auto last = std::prev(entries_.end());
  std::erase_if(places_, [&](const auto& place) { return place.second.entry == last; });
  counts_.bytes -= last->back()->bytes;
  entries_.erase(last);
}

std::vector<PrefixEnd> prefix_ends(const PromptLayout& prompt) {
  constexpr int64_t kFewTokens = 16;
  std::vector<PrefixEnd> ends;
  int example = -1;
  bool has_picture = false;
  for (const Segment& segment : prompt.segments) {
    if (segment.example > example && (has_picture || segment.begin >= kFewTokens))
      ends.push_back({segment.begin, segment.example});
    example = std::max(example, segment.example);
    has_picture = has_picture || segment.image >= 0;
  }
  return ends;
}

int boundary_depth(const PolicyWalk& walk, int num_layers) {
  const ActPoint* point = walk.boundary_point();
  if (!point) return num_layers;
  return point->site < Site::kBeforeLayer ? 0 : point->layer;
}

PrefixKey key_of_prefix(const Sequence& sequence, int64_t end) {
  const PackedPrompt& prompt = sequence.prompt;
  PrefixKey key{.ids = {prompt.ids.begin(), prompt.ids.begin() + end},
                .pictures = {},
                .policy = sequence.walk.policy().spec(),
                .salt = sequence.salt};
  int images = 0;
  for (const Segment& segment : prompt.layout->segments)
    if (segment.end <= end) images = std::max(images, segment.image + 1);
  key.pictures.assign(sequence.picture_keys.begin(), sequence.picture_keys.begin() + images);
  return key;
}

}  // namespace espalier
