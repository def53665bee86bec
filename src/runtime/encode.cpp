// SPDX-License-Identifier: Apache-2.0
#include "runtime/encode.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "espalier/error.h"
#include "espalier/ops.h"
#include "model/decoder.h"
#include "runtime/signals.h"

namespace espalier {

namespace {

bool reads_vision_layer(const Sequence& sequence, int layer) {
  return std::ranges::any_of(sequence.walk.needs(),
                             [&](const Signal& s) { return std::ranges::count(vision_layers_read(s), layer) > 0; });
}

// What was seen of the picture before, by its handle or in the cache; else `look` looks, and the cache keeps it.
template <typename Look>
VisionFeatures features_once(const ImagePart& part, const ImagePlan& plan, ImageCache* cache, int64_t& found_in_cache,
                             const Look& look) {
  if (part.handle)
    if (const VisionFeatures* features = part.handle->features(plan)) return *features;
  if (!cache) return look();
  const ImageCache::Key key = ImageCache::key_of(*part.image, plan);
  if (const auto found = cache->find(key)) {
    ++found_in_cache;
    return *found;
  }
  const VisionFeatures features = look();
  cache->keep(key, features);
  return features;
}

// Features of the patches as a verdict at vision_output leaves them. `before` is the layout that it judged.
at::Tensor apply_to_features(const at::Tensor& features, const TokenLayout& before, const Applied& applied) {
  if (applied.unchanged) return features;
  const at::Tensor is_patch = before.kind == static_cast<int64_t>(Segment::Kind::kPatches);
  const int64_t n = before.num_tokens(), m = features.size(0);
  at::Tensor row = is_patch.to(at::kLong).cumsum(0) - 1;  // feature row of each old token
  at::Tensor source = features;
  if (applied.has_new_tokens) {
    row = at::cat({row, at::arange(m, m + applied.new_vectors.size(0), row.options())});
    source = at::cat({features, applied.new_vectors.to(features.scalar_type())});
  }
  const at::Tensor patches_now =
      (applied.layout.kind == static_cast<int64_t>(Segment::Kind::kPatches)).nonzero().squeeze(1);
  TORCH_INTERNAL_ASSERT(n == is_patch.size(0));
  return ops::gather_rows(source, row.index_select(0, applied.index.index_select(0, patches_now)));
}

at::Tensor merge_embeddings(const LoadedModel& model, const Sequence& sequence, const at::Tensor& image_tokens) {
  const TokenLayout& layout = sequence.walk.layout();
  at::Tensor ids = at::empty({static_cast<int64_t>(sequence.prompt.ids.size())}, at::kLong);
  std::ranges::copy(sequence.prompt.ids, ids.data_ptr<int64_t>());
  ids = ids.to(model.device);
  const at::Tensor hidden = embed_tokens(model.weights.decoder, ids.index_select(0, layout.source_index.clamp_min(0)));
  if (!image_tokens.defined()) return hidden;
  const at::Tensor is_text = layout.kind == static_cast<int64_t>(Segment::Kind::kText);
  return hidden.index_copy(0, is_text.logical_not().nonzero().squeeze(1), image_tokens.to(hidden.scalar_type()));
}

}  // namespace

std::shared_ptr<const ImageHandle> look_at(const LoadedModel& model, std::shared_ptr<const Image> image) {
  if (!image) throw Error("look_at: the image has no pixels");
  check(*image, "look_at");
  const ImagePlan plan = model.front_end.plan(image->width, image->height);
  const at::Tensor pixels = model.front_end.pixels(plan, *image);
  VisionFeatures features =
      model.front_end.tower(plan, pixels.to(model.device), model.config.vision.feature_layers, {});
  return std::make_shared<const ImageHandle>(model, std::move(image), plan.pixel_shape, std::move(features));
}

Encoding::Encoding(const LoadedModel& model, Sequence& sequence, EncodeInputs inputs)
    : model_(model),
      sequence_(sequence),
      inputs_(std::move(inputs)),
      next_(sequence.prefix.first_image),
      vision_{.facts = model.config.vision, .traces = {}, .features = {}, .classes = {}, .tower_row = {}},
      encoding_(model.device, Stopwatch::kStopped),
      selecting_(model.device, Stopwatch::kStopped) {}

bool Encoding::step() {
  if (is_done_) return false;
  const size_t pictures = sequence_.prompt.images.size();
  encoding_.start();
  if (next_ < pictures) run_picture(next_++);
  if (next_ == pictures) {
    embed(patches_.empty() ? without_pictures() : finish_pictures());
    is_done_ = true;
  }
  encoding_.stop();
  if (is_done_) act_on_projected();
  return !is_done_;
}

void Encoding::record_times() {
  sequence_.stats.encoded(encoding_.milliseconds());
  sequence_.stats.selected(selecting_.milliseconds());
}

bool Encoding::is_watched() const {
  return (sequence_.watcher && sequence_.watcher->watches_vision()) ||
         std::ranges::any_of(sequence_.walk.needs(), [](const Signal& s) { return !vision_layers_read(s).empty(); });
}

// Vision layers that the features and the policy's pending signals need.
int Encoding::layers_to_run() const {
  if (sequence_.watcher && sequence_.watcher->watches_vision()) return model_.config.vision.num_layers;
  int layers = model_.config.vision.feature_layers;
  for (const Signal& signal : sequence_.walk.needs())
    for (const int layer : vision_layers_read(signal)) layers = std::max(layers, layer + 1);
  return layers;
}

void Encoding::run_picture(size_t image) {
  const PackedPrompt& prompt = sequence_.prompt;
  const ImagePlan& plan = prompt.plans[image];
  RunWatcher* watcher = sequence_.watcher;
  const auto observe = [&](const VisionLayerTrace& trace) {
    if (reads_vision_layer(sequence_, trace.layer)) vision_.traces[trace.layer].push_back(trace);
    if (watcher && watcher->watches_vision()) watcher->on_vision_layer(image, plan, trace);
    if (!inputs_.between_layers) return;
    encoding_.stop();
    inputs_.between_layers();
    encoding_.start();
  };
  const auto look = [&] {
    const VisionFrontEnd& front_end = model_.front_end;
    const at::Tensor pixels = inputs_.pixel_values.defined()
                                  ? front_end.pixels_in_batch(prompt.plans, inputs_.pixel_values, image)
                                  : front_end.pixels(plan, *prompt.images[image].image);
    if (watcher) watcher->on_pixels(pixels);
    const bool is_observed = is_watched() || inputs_.between_layers;
    return front_end.tower(plan, pixels.to(model_.device), layers_to_run(),
                           is_observed ? VisionObserver(observe) : VisionObserver());
  };
  const bool may_reuse = !is_watched() && !(watcher && watcher->watches_pixels()) && !inputs_.pixel_values.defined();
  const VisionFeatures features =
      may_reuse ? features_once(prompt.images[image], plan, inputs_.cache, pictures_found_, look) : look();
  patches_.push_back(features.patches.flatten(0, -2));
  if (features.classes.defined()) classes_.push_back(features.classes);
}

// What the projector makes of the patches that the policy leaves before it.
at::Tensor Encoding::finish_pictures() {
  vision_.tower_row = tower_rows(std::span(sequence_.prompt.plans).subspan(sequence_.prefix.first_image));
  if (vision_.tower_row.defined()) vision_.tower_row = vision_.tower_row.to(model_.device);
  vision_.features = in_sequence_order(at::cat(patches_), 0, vision_.tower_row);
  if (!classes_.empty()) vision_.classes = at::cat(classes_);
  if (sequence_.watcher) sequence_.watcher->on_vision_output(vision_.features, vision_.classes);
  encoding_.stop();
  selecting_.start();
  for (const Signal& signal : sequence_.walk.needs()) {
    const bool is_early = is_vision_signal(signal);
    early_signals_.push_back(is_early ? compute_signal(signal, vision_) : at::Tensor());
    if (is_early) sequence_.stats.probed(signal_flops(signal, vision_));
  }
  at::Tensor features = vision_.features;
  while (sequence_.walk.is_next(Site::kVisionOutput)) {  // several, in a pipeline
    const TokenLayout before = sequence_.walk.layout();
    features = apply_to_features(features, before, sequence_.walk.act(early_signals_).applied);
    early_signals_.assign(sequence_.walk.needs().size(), {});  // later points cannot read the tower
    acted();
  }
  selecting_.stop();
  encoding_.start();
  return model_.front_end.project(features, sequence_.walk.layout());
}

// Behind a prefix that has them all, the policy has nothing to judge before the projector.
at::Tensor Encoding::without_pictures() {
  while (sequence_.walk.is_next(Site::kVisionOutput)) sequence_.walk.act({});
  return {};
}

void Encoding::embed(const at::Tensor& image_tokens) {
  sequence_.stream.hidden = merge_embeddings(model_, sequence_, image_tokens);
  RunWatcher* watcher = sequence_.watcher;
  if (!watcher) return;
  const TokenLayout& layout = sequence_.walk.layout();
  if (image_tokens.defined()) {
    const at::Tensor is_text = layout.kind == static_cast<int64_t>(Segment::Kind::kText);
    watcher->on_image_tokens(sequence_.stream.hidden.index_select(0, is_text.logical_not().nonzero().squeeze(1)));
  }
  watcher->on_embedded(layout, sequence_.stream.hidden);
}

void Encoding::act_on_projected() {
  selecting_.start();
  while (sequence_.walk.is_next(Site::kProjectorOutput)) {
    const auto norm = [&](const at::Tensor& x) { return final_norm(model_.config.decoder, model_.weights.decoder, x); };
    const TokenLayout& layout = sequence_.walk.layout();
    const SignalSource source{.config = model_.config.decoder,
                              .layout = layout,
                              .hidden = sequence_.stream.hidden,
                              .traces = sequence_.traces,
                              .look_ahead = {},
                              .final_norm = norm};
    std::vector<at::Tensor> signals;
    for (size_t i = 0; i < sequence_.walk.needs().size(); ++i) {
      const Signal& signal = sequence_.walk.needs()[i];
      signals.push_back(is_vision_signal(signal) ? early_signals_.at(i) : compute_signal(signal, source));
      if (!is_vision_signal(signal)) sequence_.stats.probed(signal_flops(signal, source.config, layout));
    }
    sequence_.stream.take(sequence_.walk.act(signals).applied);
    acted();
  }
  selecting_.stop();
}

void Encoding::acted() {
  if (!sequence_.on_acted) return;
  selecting_.stop();
  sequence_.on_acted();
  selecting_.start();
}

void encode(const LoadedModel& model, Sequence& sequence, const EncodeInputs& inputs) {
  Encoding encoding(model, sequence, inputs);
  while (encoding.step()) {
  }
  encoding.record_times();
}

}  // namespace espalier
