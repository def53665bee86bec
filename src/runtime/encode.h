// SPDX-License-Identifier: Apache-2.0
// From a packed prompt to the decoder's input: pictures through preprocessing, vision tower and projector, text through
// the embedding, with the policy's acts before and behind the projector.
#pragma once

#include <functional>

#include "espalier/generation.h"
#include "runtime/device_stopwatch.h"
#include "runtime/image_cache.h"
#include "runtime/loaded_model.h"
#include "runtime/sequence.h"
#include "runtime/signals.h"

namespace espalier {

// Thrown inside the runtime when a callback asks to cancel; becomes FinishReason::kCancelled.
struct Cancelled {};

struct EncodeInputs {
  // Read and filled where nobody looks into the tower: then encode times leave out pictures that were seen before.
  ImageCache* cache = nullptr;
  at::Tensor pixel_values = {};  // a batch in place of the pictures' own
  // Called behind each layer of the tower; its time does not count. What it throws ends the encoding.
  std::function<void()> between_layers = {};
};

// One sequence's encoding, picture by picture: between two of them, and between two layers of the tower, others get
// their turn. Fills sequence.stream.
class Encoding {
 public:
  Encoding(const LoadedModel& model, Sequence& sequence, EncodeInputs inputs);

  // The next picture; behind the last, the decoder's input. False when nothing is left.
  bool step();
  int64_t pictures_done() const { return static_cast<int64_t>(next_); }
  // Of those, found in the cache.
  int64_t pictures_found() const { return pictures_found_; }
  // Times go to the sequence's statistics. Waits for the device.
  void record_times();

 private:
  int layers_to_run() const;
  bool is_watched() const;
  void run_picture(size_t image);
  at::Tensor finish_pictures();
  at::Tensor without_pictures();
  void embed(const at::Tensor& image_tokens);
  void act_on_projected();
  void acted();

  const LoadedModel& model_;
  Sequence& sequence_;
  EncodeInputs inputs_;
  size_t next_ = 0;  // picture
  int64_t pictures_found_ = 0;
  bool is_done_ = false;
  VisionSignalSource vision_;
  std::vector<at::Tensor> patches_, classes_;  // of the pictures so far
  std::vector<at::Tensor> early_signals_;      // of the vision tower, for the first point
  DeviceStopwatch encoding_, selecting_;
};

// All of it at once.
void encode(const LoadedModel& model, Sequence& sequence, const EncodeInputs& inputs = {});

// The picture through preprocessing and vision tower, for use in many prompts.
std::shared_ptr<const ImageHandle> look_at(const LoadedModel& model, std::shared_ptr<const Image> image);

}  // namespace espalier
