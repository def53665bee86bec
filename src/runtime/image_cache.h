// SPDX-License-Identifier: Apache-2.0
// The vision tower's output of pictures that were looked at before: held by a caller (ImageHandle), or kept by the
// engine in a bounded cache. Only what the projector reads: a policy that asks for the tower's attention has it run
// again.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "espalier/prompt.h"
#include "families/image_plan.h"
#include "model/vision.h"

namespace espalier {

struct LoadedModel;

class ImageHandle {
 public:
  ImageHandle(const LoadedModel& model, std::shared_ptr<const Image> image, std::vector<int64_t> pixel_shape,
              VisionFeatures features)
      : model_(&model),
        image_(std::move(image)),
        pixel_shape_(std::move(pixel_shape)),
        features_(std::move(features)) {}

  const std::shared_ptr<const Image>& image() const { return image_; }
  bool is_of(const LoadedModel& model) const { return model_ == &model; }
  // The features, unless this prompt prepares the picture in another way (a policy may have it scaled).
  const VisionFeatures* features(const ImagePlan& plan) const {
    return plan.pixel_shape == pixel_shape_ ? &features_ : nullptr;
  }

 private:
  const LoadedModel* model_;
  std::shared_ptr<const Image> image_;
  std::vector<int64_t> pixel_shape_;
  VisionFeatures features_;
};

// Least recently used goes first. Pictures are known by their pixels and by what is made of them, not by their address
// or file. Thread-safe.
class ImageCache {
 public:
  explicit ImageCache(int64_t max_bytes) : max_bytes_(max_bytes) {}

  using Key = std::pair<std::string, std::vector<int64_t>>;  // digest of the pixels; ImagePlan::pixel_shape
  static Key key_of(const Image& image, const ImagePlan& plan);

  std::optional<VisionFeatures> find(const Key& key);
  // A picture larger than the whole cache is not kept.
  void keep(const Key& key, const VisionFeatures& features);
  void clear();
  struct Counts {
    int64_t hits = 0, misses = 0;
    int64_t bytes = 0;  // of all that is kept
  };
  Counts counts() const;
  int64_t bytes() const { return counts().bytes; }

 private:
  struct Entry {
    Key key;
    VisionFeatures features;
    int64_t bytes;
  };
  void drop_last();

  mutable std::mutex mutex_;
  int64_t max_bytes_;
  Counts counts_;
  std::list<Entry> entries_;  // last used first
  std::map<Key, std::list<Entry>::iterator> places_;
};

}  // namespace espalier
