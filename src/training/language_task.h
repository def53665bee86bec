// SPDX-License-Identifier: Apache-2.0
// Tasks that train the decoder on packed sequences: they differ in how they draw a batch and share loss and evaluation.
// `copying` and `text_binding` know no pictures.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "synth/wording.h"
#include "training/batch_builder.h"
#include "training/draw.h"
#include "training/trainer.h"

namespace espalier {

struct LanguageTaskOptions {
  at::ScalarType dtype = at::kFloat;  // of the arithmetic; masters are float32
  int share_layers = 0;               // late reading: the loss on attention that the first layers give to image tokens
  double share_weight = 0.3;
  int evaluation_batches = 20;
};

class LanguageTask : public Task {
 public:
  LanguageTask(const LlavaConfig& config, const LanguageTaskOptions& options) : config_(config), options_(options) {}

  at::Tensor loss(const Parameters& parameters, int64_t step) const override;
  std::vector<Score> evaluate(const Parameters& parameters) const override;
  // The same with all image tokens taken away before a layer: where the decoder still reads them.
  std::vector<Score> evaluate_without_images(const Parameters& parameters, int from_layer) const;
  // Loss on two evaluation batches of the decoder without these layers.
  double evaluation_loss_without(const Parameters& parameters, const std::vector<int>& layers) const;
  // Batch `number` of training, or of the evaluation's own seeds.
  virtual TrainingBatch batch(int64_t number, bool is_evaluation) const = 0;
  virtual std::vector<std::string> topics() const = 0;  // what the batch's topics number

 protected:
  const LlavaConfig& config() const { return config_; }

 private:
  std::vector<Score> evaluate(const Parameters& parameters, const TrainingPassOptions& pass) const;

  const LlavaConfig& config_;
  LanguageTaskOptions options_;
};

// Greedy hits by topic, added to `scores`.
void count_hits(const at::Tensor& logits, const TrainingBatch& batch, std::vector<Score>& scores);

// The name of class c of an attribute, and made-up words for `count` classes, none held out for this attribute.
std::string_view class_name(synth::Attribute attribute, int64_t c);
std::vector<std::string> draw_words(Draw& draw, synth::Attribute attribute, int64_t count);
// "what shape is dax?" or "what colour is the dax?": answered with the class that the examples gave the word. A spot's
// word has no such question.
std::string ask_class_of(synth::Attribute attribute, const std::string& word);

// Random words, half of the sequences repeated with a period, half key-value pairs: what teaches the copying circuit.
std::unique_ptr<LanguageTask> copying_task(const LlavaConfig& config, const TurnTokens& tokens,
                                           const LanguageTaskOptions& options, uint64_t seed, int64_t sequences,
                                           int64_t length);

// Turns of binding, and a share `resolve` of turns of resolving, of which only the last few tokens between what is
// named and the answer are there.
std::unique_ptr<LanguageTask> short_turns_task(const LlavaConfig& config, const TurnTokens& tokens,
                                               const LanguageTaskOptions& options, uint64_t seed, int64_t sequences,
                                               int64_t turns, double resolve);

// The turns of in-context binding with the class's name in place of the picture. Of the turns, a share `echo` asks for
// the name itself, and of those about a word that was already given a share `resolve` for the class that it names.
std::unique_ptr<LanguageTask> text_binding_task(const LlavaConfig& config, const TurnTokens& tokens,
                                                const LanguageTaskOptions& options, uint64_t seed, int64_t sequences,
                                                int64_t turns, double echo, double resolve);

}  // namespace espalier
