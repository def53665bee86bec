// SPDX-License-Identifier: Apache-2.0
#include "runtime/encode.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <string>

#include "espalier/error.h"
#include "espalier/ops.h"
#include "model/decoder.h"
#include "runtime/signals.h"
#include "runtime/stopwatch.h"

namespace espalier {

namespace {

at::Tensor pixels_of(const LoadedModel& model, const Image& image) {
  PixelValues pixels = preprocess(model.image_processor, image);
  const int64_t side = model.config.vision.image_size;
  if (pixels.height != side || pixels.width != side)
    throw Error(model.folder.string() + "/preprocessor_config.json: pictures come out as " +
                std::to_string(pixels.width) + " x " + std::to_string(pixels.height) + ", but the vision tower takes " +
                std::to_string(side) + " x " + std::to_string(side));
  return at::from_blob(pixels.values.data(), {pixels.crops, pixels.channels, pixels.height, pixels.width}, at::kFloat)
      .clone();
}

at::Tensor pixels_of(const LoadedModel& model, const Sequence& sequence, const EncodeHooks& hooks, size_t image) {
  if (!hooks.pixel_values.defined()) return pixels_of(model, *sequence.prompt.images[image].image);
  const int64_t side = model.config.vision.image_size, images = std::ssize(sequence.prompt.images);
  if (hooks.pixel_values.sizes() != at::IntArrayRef({images, 3, side, side}))
    throw Error("pixel values: expected float32 [" + std::to_string(images) + ", 3, " + std::to_string(side) + ", " +
                std::to_string(side) + "]");
  return hooks.pixel_values.slice(0, static_cast<int64_t>(image), static_cast<int64_t>(image) + 1);
}

// Vision layers that the features and the policy's pending signals need.
int vision_layers_to_run(const LoadedModel& model, const Sequence& sequence, const EncodeHooks& hooks) {
  if (hooks.on_vision_layer) return model.config.vision.num_layers;
  int layers = model.config.last_vision_layer();
  for (const Signal& signal : sequence.walk.needs())
    for (const int layer : vision_layers_read(signal)) layers = std::max(layers, layer + 1);
  return layers;
}

bool reads_vision_layer(const Sequence& sequence, int layer) {
  return std::ranges::any_of(sequence.walk.needs(),
                             [&](const Signal& s) { return std::ranges::count(vision_layers_read(s), layer) > 0; });
}

VisionState run_vision(const LoadedModel& model, const Sequence& sequence, const EncodeHooks& hooks) {
  VisionState state{.config = model.config.vision, .traces = {}, .features = {}, .classes = {}};
  const int num_layers = vision_layers_to_run(model, sequence, hooks);
  std::vector<at::Tensor> patches, classes;
  const size_t images = sequence.prompt.images.size();
  for (size_t i = 0; i < images; ++i) {
    if (hooks.should_cancel && hooks.should_cancel()) throw Cancelled();
    const at::Tensor pixels = pixels_of(model, sequence, hooks, i);
    if (hooks.on_pixels) hooks.on_pixels(pixels);
    const auto observe = [&](const VisionLayerTrace& trace) {
      if (reads_vision_layer(sequence, trace.layer)) state.traces[trace.layer].push_back(trace);
      if (hooks.on_vision_layer) hooks.on_vision_layer(i, trace);
    };
    const VisionFeatures features =
        run_vision_tower(model.config, model.weights.vision, pixels.to(model.device), num_layers, observe);
    patches.push_back(features.patches.flatten(0, 1));
    classes.push_back(features.classes);
    if (hooks.on_progress) hooks.on_progress("encode", static_cast<int64_t>(i) + 1, static_cast<int64_t>(images));
  }
  state.features = at::cat(patches);
  state.classes = at::cat(classes);
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
  at::Tensor hidden = embed_tokens(model.weights.decoder, ids.index_select(0, layout.source_index.clamp_min(0)));
  if (!image_tokens.defined()) return hidden;
  const at::Tensor patches = (layout.kind == static_cast<int64_t>(Segment::Kind::kPatches)).nonzero().squeeze(1);
  return hidden.index_copy(0, patches, image_tokens.to(hidden.scalar_type()));
}

}  // namespace

at::Tensor apply_rows(const at::Tensor& x, const Applied& applied) {
  if (applied.unchanged) return x;
  const at::Tensor rows = applied.has_new_tokens ? at::cat({x, applied.new_vectors.to(x.scalar_type())}) : x;
  return ops::gather_rows(rows, applied.index);
}

void encode(const LoadedModel& model, Sequence& sequence, const EncodeHooks& hooks) {
  Stopwatch encoding;
  Stopwatch selecting(Stopwatch::kStopped);
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
    }
    selecting.stop();
    encoding.start();
    image_tokens = project(model.config, model.weights.projector, features);
    if (hooks.on_projected) hooks.on_projected(image_tokens);
  }
  sequence.hidden = merge_embeddings(model, sequence, image_tokens);
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
  }
  sequence.stats.encode_ms += encoding.milliseconds();
  sequence.stats.select_ms += selecting.milliseconds();
}

}  // namespace espalier
