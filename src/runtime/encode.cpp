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

at::Tensor pixels_for(const LoadedModel& model, const Sequence& sequence, const EncodeHooks& hooks, size_t image) {
  const PackedPrompt& prompt = sequence.prompt;
  if (hooks.pixel_values.defined()) return model.front_end.pixels_in_batch(prompt.plans, hooks.pixel_values, image);
  return model.front_end.pixels(prompt.plans[image], *prompt.images[image].image);
}

// Vision layers that the features and the policy's pending signals need.
int vision_layers_to_run(const LoadedModel& model, const Sequence& sequence, const EncodeHooks& hooks) {
  if (hooks.on_vision_layer) return model.config.vision.num_layers;
  int layers = model.config.vision.feature_layers;
  for (const Signal& signal : sequence.walk.needs())
    for (const int layer : vision_layers_read(signal)) layers = std::max(layers, layer + 1);
  return layers;
}

bool reads_vision_layer(const Sequence& sequence, int layer) {
  return std::ranges::any_of(sequence.walk.needs(),
                             [&](const Signal& s) { return std::ranges::count(vision_layers_read(s), layer) > 0; });
}

// What was seen of the picture before, by its handle or in the cache; else `look` looks, and the cache keeps it.
template <typename Look>
VisionFeatures features_once(const ImagePart& part, const ImagePlan& plan, ImageCache* cache, const Look& look) {
  if (part.handle)
    if (const VisionFeatures* features = part.handle->features(plan)) return *features;
  if (!cache) return look();
  const ImageCache::Key key = ImageCache::key_of(*part.image, plan);
  if (const auto found = cache->find(key)) return *found;
  const VisionFeatures features = look();
  cache->keep(key, features);
  return features;
}

VisionState run_vision(const LoadedModel& model, const Sequence& sequence, const EncodeHooks& hooks) {
  VisionState state{.facts = model.config.vision, .traces = {}, .features = {}, .classes = {}, .tower_row = {}};
  const int num_layers = vision_layers_to_run(model, sequence, hooks);
  std::vector<at::Tensor> patches, classes;
  const size_t images = sequence.prompt.images.size();
  const bool is_watched = hooks.on_vision_layer || std::ranges::any_of(sequence.walk.needs(), [](const Signal& s) {
                            return !vision_layers_read(s).empty();
                          });
  for (size_t i = 0; i < images; ++i) {
    if (hooks.should_cancel && hooks.should_cancel()) throw Cancelled();
    const ImagePlan& plan = sequence.prompt.plans[i];
    const auto observe = [&](const VisionLayerTrace& trace) {
      if (reads_vision_layer(sequence, trace.layer)) state.traces[trace.layer].push_back(trace);
      if (hooks.on_vision_layer) hooks.on_vision_layer(i, plan, trace);
    };
    const auto look = [&] {
      const at::Tensor pixels = pixels_for(model, sequence, hooks, i);
      if (hooks.on_pixels) hooks.on_pixels(pixels);
      return model.front_end.tower(plan, pixels.to(model.device), num_layers,
                                   is_watched ? VisionObserver(observe) : VisionObserver());
    };
    const bool may_reuse = !is_watched && !hooks.on_pixels && !hooks.pixel_values.defined();
    const VisionFeatures features =
        may_reuse ? features_once(sequence.prompt.images[i], plan, hooks.cache, look) : look();
    patches.push_back(features.patches.flatten(0, -2));
    if (features.classes.defined()) classes.push_back(features.classes);
    if (hooks.on_progress) hooks.on_progress("encode", static_cast<int64_t>(i) + 1, static_cast<int64_t>(images));
  }
  state.tower_row = tower_rows(sequence.prompt.plans);
  if (state.tower_row.defined()) state.tower_row = state.tower_row.to(model.device);
  state.features = in_sequence_order(at::cat(patches), 0, state.tower_row);
  if (!classes.empty()) state.classes = at::cat(classes);
  if (hooks.on_vision_output) hooks.on_vision_output(state.features, state.classes);
  return state;
}

std::vector<at::Tensor> vision_signals(const Sequence& sequence, const VisionState& state) {
  std::vector<at::Tensor> signals;
  for (const Signal& signal : sequence.walk.needs())
    signals.push_back(is_vision_signal(signal) ? compute_signal(signal, state) : at::Tensor());
  return signals;
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
  if (!image || image->width < 1 || image->height < 1) throw Error("look_at: the image has no pixels");
  const ImagePlan plan = model.front_end.plan(image->width, image->height);
  const at::Tensor pixels = model.front_end.pixels(plan, *image);
  VisionFeatures features =
      model.front_end.tower(plan, pixels.to(model.device), model.config.vision.feature_layers, {});
  return std::make_shared<const ImageHandle>(model, std::move(image), plan.pixel_shape, std::move(features));
}

at::Tensor apply_rows(const at::Tensor& x, const Applied& applied) {
  if (applied.unchanged) return x;
  const at::Tensor rows = applied.has_new_tokens ? at::cat({x, applied.new_vectors.to(x.scalar_type())}) : x;
  return ops::gather_rows(rows, applied.index);
}

void encode(const LoadedModel& model, Sequence& sequence, const EncodeHooks& hooks) {
  DeviceStopwatch& encoding = sequence.encoding.emplace(model.device);
  DeviceStopwatch& selecting = sequence.selecting.emplace(model.device, Stopwatch::kStopped);
  at::Tensor image_tokens;
  std::vector<at::Tensor> early_signals;  // of the vision tower, for the first point
  if (!sequence.prompt.images.empty()) {
    VisionState vision = run_vision(model, sequence, hooks);
    encoding.stop();
    selecting.start();
    early_signals = vision_signals(sequence, vision);
    at::Tensor features = vision.features;
    while (sequence.walk.is_next(Site::kVisionOutput)) {  // several, in a pipeline
      const TokenLayout before = sequence.walk.layout();
      features = apply_to_features(features, before, sequence.walk.act(early_signals).applied);
      early_signals.assign(sequence.walk.needs().size(), {});  // later points cannot read the tower
      selecting.stop();
      if (hooks.on_acted) hooks.on_acted(sequence.walk);
      selecting.start();
    }
    selecting.stop();
    encoding.start();
    image_tokens = model.front_end.project(features, sequence.walk.layout());
  }
  sequence.hidden = merge_embeddings(model, sequence, image_tokens);
  if (hooks.on_image_tokens && image_tokens.defined()) {
    const at::Tensor is_text = sequence.walk.layout().kind == static_cast<int64_t>(Segment::Kind::kText);
    hooks.on_image_tokens(sequence.hidden.index_select(0, is_text.logical_not().nonzero().squeeze(1)));
  }
  if (hooks.on_embedded) hooks.on_embedded(sequence.walk.layout(), sequence.hidden);
  encoding.stop();
  while (sequence.walk.is_next(Site::kProjectorOutput)) {
    selecting.start();
    const auto final_norm_of = [&](const at::Tensor& x) {
      return final_norm(model.config.decoder, model.weights.decoder, x);
    };
    const DecoderState state{.config = model.config.decoder,
                             .layout = sequence.walk.layout(),
                             .hidden = sequence.hidden,
                             .traces = sequence.traces,
                             .look_ahead = {},
                             .final_norm = final_norm_of};
    std::vector<at::Tensor> signals;
    for (size_t i = 0; i < sequence.walk.needs().size(); ++i) {
      const Signal& signal = sequence.walk.needs()[i];
      signals.push_back(is_vision_signal(signal) ? early_signals.at(i) : compute_signal(signal, state));
    }
    sequence.hidden = apply_rows(sequence.hidden, sequence.walk.act(signals).applied);
    selecting.stop();
    if (hooks.on_acted) hooks.on_acted(sequence.walk);
  }
}

}  // namespace espalier
