// SPDX-License-Identifier: Apache-2.0
#include "training/tower_task.h"

#include <torch/types.h>

#include <array>
#include <cstring>
#include <span>

#include "families/llava/tower.h"
#include "synth/crowd.h"
#include "synth/screens.h"
#include "training/patch_labels.h"

namespace espalier {

namespace {

using synth::Cover;

static_assert(PatchLabel::kNothing == -100, "cross_entropy leaves these out");
constexpr int64_t kNothing = PatchLabel::kNothing;

enum Head : uint8_t { kShape, kColour, kSpot, kPlace, kCount, kCover, kCoverShape, kCoverColour, kRow, kColumn };
struct HeadPlan {
  const char* name;
  int64_t classes;
  bool is_of_patch;
  double weight;
};
constexpr std::array<HeadPlan, 10> kHeads = {{
    {"shape", synth::kNumShapes, false, 1},
    {"colour", synth::kNumColours, false, 0.5},
    {"spot", synth::kNumColours, false, 0.5},
    {"place", synth::kNumPlaces, false, 0.5},
    {"count", synth::kMaxObjects, false, 0.5},
    {"cover", 5, true, 1},
    {"cover-shape", synth::kNumShapes, true, 1},
    {"cover-colour", synth::kNumColours, true, 1},
    {"row", 0, true, 0.5},  // classes: the grid's
    {"column", 0, true, 0.5},
}};

enum CrowdedHead : uint8_t { kMembers, kThing, kThingShape, kThingColour, kThingMark, kThingRow, kThingColumn };
constexpr std::array<HeadPlan, 7> kCrowdedHeads = {{
    {"members", synth::kMostInCrowd, false, 0.25},
    {"thing", PatchLabel::kNumThings, true, 1},
    {"thing-shape", synth::kNumShapes, true, 1},
    {"thing-colour", synth::kNumColours, true, 1},
    {"thing-mark", synth::kNumColours, true, 1},
    {"row", 0, true, 0.5},
    {"column", 0, true, 0.5},
}};

std::span<const HeadPlan> heads_for(TowerPictures pictures) {
  return pictures == TowerPictures::kFew ? std::span<const HeadPlan>(kHeads) : kCrowdedHeads;
}

int64_t classes_of(const LlavaConfig& config, const HeadPlan& head) {
  return head.classes > 0 ? head.classes : config.vision.grid();
}

std::string head_name(const HeadPlan& head) {
  return std::string("heads.") + head.name;
}

// Pictures with the target of every head: [n] for the class token's, [n · patches] for a patch's.
struct LabelledPictures {
  at::Tensor pixels;
  std::vector<std::vector<int64_t>> targets;  // by head
};

void add_targets(const synth::Scene& scene, const std::vector<Cover>& covers, int64_t grid, LabelledPictures& to) {
  const bool is_solo = scene.spot.has_value();
  const synth::Object& first = scene.objects[0];
  const auto put = [&](Head head, int64_t value) { to.targets[head].push_back(value); };
  put(kShape, is_solo ? static_cast<int64_t>(first.shape) : kNothing);
  put(kColour, is_solo ? static_cast<int64_t>(first.colour) : kNothing);
  put(kSpot, is_solo ? static_cast<int64_t>(scene.spot->colour) : kNothing);
  put(kPlace, is_solo ? static_cast<int64_t>(first.place()) : kNothing);
  put(kCount, static_cast<int64_t>(scene.objects.size()) - 1);
  for (size_t p = 0; p < covers.size(); ++p) {
    const Cover& c = covers[p];
    const bool is_object = c.by == Cover::By::kObject, is_spot = c.by == Cover::By::kSpot;
    put(kCover, static_cast<int64_t>(c.by));
    put(kCoverShape, is_object ? static_cast<int64_t>(scene.objects[c.object].shape) : kNothing);
    put(kCoverColour, is_object ? static_cast<int64_t>(scene.objects[c.object].colour)
                      : is_spot ? static_cast<int64_t>(scene.spot->colour)
                                : kNothing);
    put(kRow, static_cast<int64_t>(p) / grid);
    put(kColumn, static_cast<int64_t>(p) % grid);
  }
}

void add_crowded_targets(const synth::Scene& scene, const std::vector<Cover>& covers, int64_t grid,
                         LabelledPictures& to) {
  const auto put = [&](CrowdedHead head, int64_t value) { to.targets[head].push_back(value); };
  put(kMembers, scene.screen ? kNothing : static_cast<int64_t>(scene.objects.size()) - 1);
  const std::vector<PatchLabel> labels = patch_labels(scene, covers);
  for (size_t p = 0; p < labels.size(); ++p) {
    put(kThing, labels[p].thing);
    put(kThingShape, labels[p].shape);
    put(kThingColour, labels[p].colour);
    put(kThingMark, labels[p].mark);
    put(kThingRow, static_cast<int64_t>(p) / grid);
    put(kThingColumn, static_cast<int64_t>(p) % grid);
  }
}

class TowerTask : public Task {
 public:
  TowerTask(const LlavaConfig& config, const ImageProcessor& processor, const TowerTaskOptions& options, uint64_t seed)
      : config_(config), processor_(processor), options_(options), heads_(heads_for(options.pictures)), seed_(seed) {}

  at::Tensor loss(const Parameters& parameters, int64_t step) const override {
    const LabelledPictures pictures = draw(synth::Split::kTrain, step * options_.images, options_.images);
    const std::vector<at::Tensor> logits = run(parameters, pictures.pixels);
    at::Tensor sum = torch::zeros({});
    for (size_t h = 0; h < heads_.size(); ++h)
      sum = sum + heads_[h].weight * at::cross_entropy_loss(logits[h].to(torch::kFloat),
                                                            torch::tensor(pictures.targets[h], torch::kLong));
    return sum;
  }

  std::vector<Score> evaluate(const Parameters& parameters) const override {
    const torch::NoGradGuard no_gradients;
    std::vector<Score> scores;
    for (const HeadPlan& head : heads_) scores.push_back({.topic = head.name});
    for (int64_t first = 0; first < options_.evaluation_images; first += options_.images) {
      const LabelledPictures pictures = draw(synth::Split::kTest, first, options_.images);
      const std::vector<at::Tensor> logits = run(parameters, pictures.pixels);
      for (size_t h = 0; h < heads_.size(); ++h) {
        const at::Tensor targets = torch::tensor(pictures.targets[h], torch::kLong);
        scores[h].correct += (logits[h].argmax(-1) == targets).sum().item<int64_t>();
        scores[h].count += (targets != kNothing).sum().item<int64_t>();
      }
    }
    return scores;
  }

 private:
  LabelledPictures draw(synth::Split split, int64_t first, int64_t count) const {
    LabelledPictures pictures{.pixels = {}, .targets = std::vector<std::vector<int64_t>>(heads_.size())};
    std::vector<synth::Drawing> drawings;
    const int grid = static_cast<int>(config_.vision.grid());
    for (int64_t i = first; i < first + count; ++i) {
      // Streams of their own, so that no picture of the tower's training is one of the decoder's.
      const uint64_t seed = synth::scene_seed(split, 0x70000 + seed_, static_cast<uint64_t>(i));
      const auto number = static_cast<size_t>(i / 2);
      const synth::Difficulty& difficulty = options_.difficulties[number % options_.difficulties.size()];
      const bool is_crowded = options_.pictures == TowerPictures::kCrowded;
      const synth::Scene scene = is_crowded   ? crowded_picture(seed, i, difficulty)
                                 : i % 2 == 0 ? synth::solo_scene(seed, difficulty)
                                              : synth::group_scene(seed, difficulty, 1 + static_cast<int>(seed % 4));
      drawings.push_back(synth::draw(scene, is_crowded ? synth::kCrowdSide : synth::kDefaultSide));
      const std::vector<Cover> covers = synth::patch_covers(drawings.back(), grid, grid);
      (is_crowded ? add_crowded_targets : add_targets)(scene, covers, grid, pictures);
    }
    pictures.pixels = pixels_of(processor_, drawings);
    return pictures;
  }

  // Logits of every head: class token behind the last layer and its norm, patches where the projector reads them.
  std::vector<at::Tensor> run(const Parameters& parameters, const at::Tensor& pixels) const {
    const ClipWeights weights = bind_parameters(config_, parameters, options_.dtype).vision;
    at::Tensor last;
    const VisionFeatures features = run_tower(config_, weights, pixels, config_.vision.num_layers,
                                              [&](const VisionLayerTrace& trace) { last = trace.output; });
    const auto parameter = [&](const std::string& name) { return parameters.at(name).to(options_.dtype); };
    const at::Tensor classes =
        torch::layer_norm(last.select(1, 0), {config_.vision.hidden_size}, parameter("vision.post_layernorm.weight"),
                          parameter("vision.post_layernorm.bias"), config_.vision.layer_norm_eps);
    const at::Tensor patches = features.patches.flatten(0, 1);
    std::vector<at::Tensor> logits;
    for (const HeadPlan& head : heads_)
      logits.push_back(torch::linear(head.is_of_patch ? patches : classes, parameter(head_name(head) + ".weight"),
                                     parameter(head_name(head) + ".bias")));
    return logits;
  }

  const LlavaConfig& config_;
  const ImageProcessor& processor_;
  TowerTaskOptions options_;
  std::span<const HeadPlan> heads_;
  uint64_t seed_;
};

}  // namespace

void add_tower_heads(const LlavaConfig& config, TowerPictures pictures, Parameters& parameters, uint64_t seed) {
  for (const HeadPlan& head : heads_for(pictures)) {
    const std::string name = head_name(head);
    parameters.add(name + ".weight",
                   initial_linear(name + ".weight", classes_of(config, head), config.vision.hidden_size, seed));
    parameters.add(name + ".bias", torch::zeros({classes_of(config, head)}));
  }
}

synth::Scene crowded_picture(uint64_t seed, int64_t i, const synth::Difficulty& difficulty) {
  synth::Draws draws(SplitMix64::of_stream(seed, 2).next());  // of its own: the scene draws from `seed`
  if (i % 2 == 0) {
    const std::vector<synth::Member> members = synth::draw_members(draws, draws.between(2, synth::kMostInCrowd));
    return synth::crowded_scene(seed, difficulty, members);
  }
  const synth::ScreenSequence sequence = synth::draw_screens(draws, synth::ScreenAsk::kNow, 0);
  return synth::screen_scene(seed, difficulty, sequence, 0);  // the asked colour is the last screen's
}

std::unique_ptr<Task> tower_task(const LlavaConfig& config, const ImageProcessor& processor,
                                 const TowerTaskOptions& options, uint64_t seed) {
  return std::make_unique<TowerTask>(config, processor, options, seed);
}

at::Tensor pixels_of(const ImageProcessor& processor, const std::vector<synth::Drawing>& drawings) {
  std::vector<at::Tensor> pixels;
  for (const synth::Drawing& drawing : drawings) {
    const PixelValues values = preprocess(processor, drawing.image);
    at::Tensor one = torch::empty({values.channels, values.height, values.width}, torch::kFloat);
    std::memcpy(one.data_ptr(), values.values.data(), values.values.size() * sizeof(float));
    pixels.push_back(one);
  }
  return torch::stack(pixels);
}

at::Tensor patch_features(const LlavaConfig& config, const ClipWeights& tower, const ImageProcessor& processor,
                          const std::vector<synth::Drawing>& drawings) {
  return run_tower(config, tower, pixels_of(processor, drawings), config.last_vision_layer()).patches.flatten(0, 1);
}

}  // namespace espalier
