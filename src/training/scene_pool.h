// SPDX-License-Identifier: Apache-2.0
// Many scenes with the frozen tower's features of each, so that the decoder trains without looking at pixels again.
// Scenes follow from the seed; features are cached in a file beside the run.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <vector>

#include "families/llava/config.h"
#include "pictures/image_processor.h"
#include "synth/scene.h"
#include "training/parameters.h"

namespace espalier {

struct PoolSize {
  int64_t solos = 0;   // one object and a spot
  int64_t groups = 0;  // one to four objects
};

struct PoolPlan {
  PoolSize training, evaluation;
  synth::Difficulty difficulty;
  uint64_t seed = 0;
};

// What a task has to know about a picture of the pool.
struct PoolScene {
  std::vector<synth::Object> objects;
  std::optional<synth::Colour> spot;
  std::vector<uint8_t> object_patches;  // covered by any object
  std::vector<uint8_t> owners;          // of each of them: which object
  std::vector<uint8_t> spot_patches;
};

class ScenePool {
 public:
  // Reads the features from `cache` when they are there and of this plan and tower; else computes and writes them.
  ScenePool(const PoolPlan& plan, const LlavaConfig& config, const ImageProcessor& processor,
            const Parameters& parameters, const std::filesystem::path& cache,
            const std::function<void(int64_t done, int64_t total)>& on_progress,
            const std::function<bool()>& should_cancel);

  const PoolScene& scene(int64_t index) const { return scenes_[static_cast<size_t>(index)]; }
  // Scenes with one object of a class, and scenes with several objects by their number.
  const std::vector<int64_t>& solos(bool is_evaluation, synth::Attribute attribute, int64_t c) const;
  const std::vector<int64_t>& groups(bool is_evaluation, int64_t objects) const;

  const at::Tensor& features() const { return features_; }          // bfloat16 [scenes · patches, d_v]
  const at::Tensor& object_means() const { return object_means_; }  // bfloat16 [scenes, d_v]: of the object's patches
  const at::Tensor& spot_means() const { return spot_means_; }

  bool is_complete() const { return features_.defined(); }  // false after a cancel

 private:
  void draw_scenes(const PoolPlan& plan, int64_t grid);
  void index_scenes(const PoolPlan& plan);
  void average_features();

  struct Index {
    std::array<std::array<std::vector<int64_t>, synth::kNumClasses>, synth::kNumAttributes> solos;
    std::array<std::vector<int64_t>, synth::kMaxObjects> groups;
  };
  std::vector<PoolScene> scenes_;
  std::vector<uint64_t> seeds_;
  std::array<Index, 2> index_;  // training, evaluation
  at::Tensor features_, object_means_, spot_means_;
};

// The scene behind a seed of the pool: also for whoever wants its picture again.
synth::Scene pool_scene(uint64_t seed, bool is_solo, const synth::Difficulty& difficulty);

}  // namespace espalier
