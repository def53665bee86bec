// SPDX-License-Identifier: Apache-2.0
// From a packed prompt to the decoder's input: pictures through preprocessing, vision tower and projector, text through
// the embedding, with the policy's acts before and behind the projector.
#pragma once

#include <functional>

#include "espalier/generation.h"
#include "families/image_plan.h"
#include "model/vision.h"
#include "runtime/image_cache.h"
#include "runtime/loaded_model.h"
#include "runtime/sequence.h"

namespace espalier {

// Thrown inside the runtime when a callback asks to cancel; becomes FinishReason::kCancelled.
struct Cancelled {};

struct EncodeHooks {
  CancelCheck should_cancel;
  Progress on_progress;
  // For recordings: every vision layer of every image, then the tower's output in the order of the sequence.
  std::function<void(size_t image, const ImagePlan& plan, const VisionLayerTrace&)> on_vision_layer;
  std::function<void(const at::Tensor& features, const at::Tensor& classes)> on_vision_output;
  std::function<void(const PolicyWalk& walk)> on_acted = {};  // behind each act; its time counts in no stage
  // The decoder's input embedding, before a policy acts at projector_output.
  std::function<void(const TokenLayout& layout, const at::Tensor& hidden)> on_embedded;
  std::function<void(const at::Tensor& pixels)> on_pixels;  // of each image, as the front end makes them
  // [image tokens, d] as they enter the sequence, row breaks among them.
  std::function<void(const at::Tensor& image_tokens)> on_image_tokens;
  at::Tensor pixel_values = {};  // a batch in place of the pictures' own
  // Read and filled where nobody looks into the tower: then encode times leave out pictures that were seen before.
  ImageCache* cache = nullptr;
};

// The picture through preprocessing and vision tower, for use in many prompts.
std::shared_ptr<const ImageHandle> look_at(const LoadedModel& model, std::shared_ptr<const Image> image);

// Fills sequence.hidden, and encode and select times.
void encode(const LoadedModel& model, Sequence& sequence, const EncodeHooks& hooks);

// Rows of x [n, d] as a verdict leaves them, new vectors included.
at::Tensor apply_rows(const at::Tensor& x, const Applied& applied);

}  // namespace espalier
