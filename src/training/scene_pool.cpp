// SPDX-License-Identifier: Apache-2.0
#include "training/scene_pool.h"

#include <torch/types.h>

#include <cstring>
#include <optional>
#include <string>

#include "base/safetensors.h"
#include "espalier/error.h"
#include "training/tower_task.h"

namespace espalier {

namespace {

using synth::Attribute;
using synth::Cover;

constexpr int64_t kPicturesAtOnce = 64;
constexpr uint64_t kStream = 0x90000;

// Features of another tower must not be taken for this one's: a fingerprint over the bits of its weights.
std::string fingerprint(const Parameters& parameters, const PoolPlan& plan) {
  uint64_t hash = 0xCBF29CE484222325ULL;
  for (const Parameter& p : parameters.all()) {
    if (!p.name.starts_with("vision.")) continue;
    const at::Tensor bits = p.master.contiguous();
    const auto* words = reinterpret_cast<const uint32_t*>(bits.const_data_ptr<float>());
    for (int64_t i = 0; i < bits.numel(); ++i) hash = (hash ^ words[i]) * 0x100000001B3ULL;
  }
  std::string text = std::to_string(hash);
  for (const int64_t n :
       {plan.training.solos, plan.training.groups, plan.evaluation.solos, plan.evaluation.groups,
        int64_t{plan.difficulty.clutter}, int64_t{plan.difficulty.distractor}, static_cast<int64_t>(plan.seed)})
    text += " " + std::to_string(n);
  return text;
}

std::optional<at::Tensor> read_cache(const std::filesystem::path& file, const std::string& wanted, int64_t rows,
                                     int64_t width) {
  if (!std::filesystem::exists(file)) return std::nullopt;
  const SafetensorsFile cache = SafetensorsFile::open(file);
  const auto made_for = cache.metadata().find("made_for");
  const auto view = cache.tensors().find("features");
  if (made_for == cache.metadata().end() || made_for->second != wanted || view == cache.tensors().end())
    return std::nullopt;
  at::Tensor features = torch::empty({rows, width}, torch::kBFloat16);
  if (view->second.bytes.size() != features.nbytes()) return std::nullopt;
  std::memcpy(features.data_ptr(), view->second.bytes.data(), features.nbytes());
  return features;
}

}  // namespace

synth::Scene pool_scene(uint64_t seed, bool is_solo, const synth::Difficulty& difficulty) {
  return is_solo ? synth::solo_scene(seed, difficulty)
                 : synth::group_scene(seed, difficulty, 1 + static_cast<int>(seed % synth::kMaxObjects));
}

ScenePool::ScenePool(const PoolPlan& plan, const LlavaConfig& config, const ImageProcessor& processor,
                     const Parameters& parameters, const std::filesystem::path& cache,
                     const std::function<void(int64_t done, int64_t total)>& on_progress,
                     const std::function<bool()>& should_cancel) {
  draw_scenes(plan, config.vision.grid());
  index_scenes(plan);
  const auto count = static_cast<int64_t>(scenes_.size());
  const int64_t patches = config.vision.num_patches(), width = config.vision.hidden_size;
  const std::string made_for = fingerprint(parameters, plan);
  if (const auto cached = read_cache(cache, made_for, count * patches, width)) {
    features_ = *cached;
  } else {
    const torch::NoGradGuard no_gradients;
    const ClipWeights weights = bind_parameters(config, parameters, torch::kBFloat16).vision;
    features_ = torch::empty({count * patches, width}, torch::kBFloat16);
    for (int64_t first = 0; first < count; first += kPicturesAtOnce) {
      if (should_cancel && should_cancel()) return;
      std::vector<synth::Drawing> drawings;
      const int64_t end = std::min(count, first + kPicturesAtOnce);
      for (int64_t i = first; i < end; ++i)
        drawings.push_back(synth::draw(pool_scene(seeds_[static_cast<size_t>(i)],
                                                  scenes_[static_cast<size_t>(i)].spot.has_value(), plan.difficulty)));
      features_.slice(0, first * patches, end * patches).copy_(patch_features(config, weights, processor, drawings));
      if (on_progress) on_progress(end, count);
    }
    const TensorToWrite tensor{"features", Dtype::kBF16, {count * patches, width}, features_.const_data_ptr()};
    write_safetensors(cache, {&tensor, 1}, {{"made_for", made_for}});
  }
  average_features();
}

void ScenePool::draw_scenes(const PoolPlan& plan, int64_t grid) {
  uint64_t number = 0;
  for (const PoolSize& size : {plan.training, plan.evaluation})
    for (int64_t i = 0; i < size.solos + size.groups; ++i) {
      const uint64_t seed = synth::scene_seed(synth::Split::kTrain, kStream + plan.seed, number++);
      const synth::Scene scene = pool_scene(seed, i < size.solos, plan.difficulty);
      PoolScene entry{.objects = scene.objects, .spot = {}, .object_patches = {}, .owners = {}, .spot_patches = {}};
      if (scene.spot) entry.spot = scene.spot->colour;
      const std::vector<Cover> covers =
          synth::patch_covers(synth::draw(scene), static_cast<int>(grid), static_cast<int>(grid));
      for (size_t p = 0; p < covers.size(); ++p) {
        if (covers[p].by == Cover::By::kObject) {
          entry.object_patches.push_back(static_cast<uint8_t>(p));
          entry.owners.push_back(covers[p].object);
        }
        if (covers[p].by == Cover::By::kSpot) entry.spot_patches.push_back(static_cast<uint8_t>(p));
      }
      scenes_.push_back(std::move(entry));
      seeds_.push_back(seed);
    }
}

void ScenePool::index_scenes(const PoolPlan& plan) {
  const int64_t first_evaluation = plan.training.solos + plan.training.groups;
  for (size_t i = 0; i < scenes_.size(); ++i) {
    const PoolScene& scene = scenes_[i];
    Index& index = index_[static_cast<int64_t>(i) >= first_evaluation];
    const auto number = static_cast<int64_t>(i);
    if (!scene.spot) {
      index.groups[scene.objects.size() - 1].push_back(number);
      continue;
    }
    const auto add = [&](Attribute attribute, auto value) {
      index.solos[static_cast<size_t>(attribute)][static_cast<size_t>(value)].push_back(number);
    };
    add(Attribute::kShape, scene.objects[0].shape);
    add(Attribute::kColour, scene.objects[0].colour);
    // A spot may sit on so little of any patch that none counts as its own: no fair question, and no mean.
    if (!scene.spot_patches.empty()) add(Attribute::kSpot, *scene.spot);
  }
}

void ScenePool::average_features() {
  const auto count = static_cast<int64_t>(scenes_.size());
  const int64_t patches = features_.size(0) / count, width = features_.size(1);
  const at::Tensor by_scene = features_.view({count, patches, width});
  at::Tensor objects = torch::zeros({count, patches}), spots = torch::zeros({count, patches});
  auto object = objects.accessor<float, 2>();
  auto spot = spots.accessor<float, 2>();
  for (int64_t i = 0; i < count; ++i) {
    const PoolScene& s = scenes_[static_cast<size_t>(i)];
    for (const uint8_t p : s.object_patches) object[i][p] = 1.0f / static_cast<float>(s.object_patches.size());
    for (const uint8_t p : s.spot_patches) spot[i][p] = 1.0f / static_cast<float>(s.spot_patches.size());
  }
  const auto mean = [&](const at::Tensor& weights) {
    return torch::bmm(weights.to(torch::kBFloat16).unsqueeze(1), by_scene).squeeze(1);
  };
  object_means_ = mean(objects);
  spot_means_ = mean(spots);
}

const std::vector<int64_t>& ScenePool::solos(bool is_evaluation, Attribute attribute, int64_t c) const {
  return index_[is_evaluation].solos[static_cast<size_t>(attribute)][static_cast<size_t>(c)];
}

const std::vector<int64_t>& ScenePool::groups(bool is_evaluation, int64_t objects) const {
  return index_[is_evaluation].groups[static_cast<size_t>(objects - 1)];
}

}  // namespace espalier
