// SPDX-License-Identifier: Apache-2.0
#include "runtime/image_cache.h"

#include "base/sha256.h"

namespace espalier {

ImageCache::Key ImageCache::key_of(const Image& image, const ImagePlan& plan) {
  Sha256 digest;
  digest.add(std::to_string(image.width) + "x" + std::to_string(image.height) + ":");
  digest.add(std::span<const uint8_t>(image.rgb));
  return {digest.hex(), plan.pixel_shape};
}

std::optional<VisionFeatures> ImageCache::find(const Key& key) {
  const std::scoped_lock lock(mutex_);
  const auto place = places_.find(key);
  ++(place == places_.end() ? counts_.misses : counts_.hits);
  if (place == places_.end()) return std::nullopt;
  entries_.splice(entries_.begin(), entries_, place->second);
  return place->second->features;
}

void ImageCache::keep(const Key& key, const VisionFeatures& features) {
  int64_t bytes = static_cast<int64_t>(features.patches.nbytes());
  if (features.classes.defined()) bytes += static_cast<int64_t>(features.classes.nbytes());
  const std::scoped_lock lock(mutex_);
  if (bytes > max_bytes_ || places_.contains(key)) return;  // another request may have been faster
  while (counts_.bytes + bytes > max_bytes_) drop_last();
  entries_.push_front({key, features, bytes});
  counts_.bytes += bytes;  // also where there is no memory for its place, and nobody finds it until it goes
  places_[key] = entries_.begin();
}

void ImageCache::clear() {
  const std::scoped_lock lock(mutex_);
  places_.clear();
  entries_.clear();
  counts_.bytes = 0;
}

ImageCache::Counts ImageCache::counts() const {
  const std::scoped_lock lock(mutex_);
  return counts_;
}

void ImageCache::drop_last() {
  counts_.bytes -= entries_.back().bytes;
  places_.erase(entries_.back().key);
  entries_.pop_back();
}

}  // namespace espalier
