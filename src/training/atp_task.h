// SPDX-License-Identifier: Apache-2.0
// One training run of ATP's modules as a Task: conversations become packed sequences, the decoder runs under the
// modules' soft masks, and evaluation asks the runtime itself with tokens removed. Files and options are train_atp's.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "espalier/training.h"
#include "runtime/loaded_model.h"
#include "training/atp_examples.h"
#include "training/masked_pass.h"
#include "training/trainer.h"

namespace espalier {

// A conversation as training sees it.
struct AtpSequence {
  MaskedSequence masked;
  at::Tensor ids;        // int64 [n] prompt, then the answer; any id at image tokens
  at::Tensor text_rows;  // int64: rows whose embedding is that of their id
  int64_t answer = 0;    // row of the answer's first token
  std::vector<int32_t> answer_ids;
};
// `chat` ends with the answer. Throws Error when the checkpoint's template does not write prompt and answer one behind
// the other.
AtpSequence atp_sequence(const LoadedModel& model, const Chat& chat);

// Heads of settings.layers.size() modules, named modules.I.mix.weight and so on; a constant head has weights of zero
// that stay. Of `options`: hidden size, head, seed and the first thresholds.
void add_atp_modules(Parameters& parameters, const AtpSettings& settings, const TrainAtpOptions& options,
                     at::Device device);
// Names (or prefixes) of what is trained of them.
std::vector<std::string> trained_atp_names(const AtpSettings& settings, AtpHead head);
AtpWeights atp_weights_of(const Parameters& parameters, const AtpSettings& settings, const std::string& file);

class AtpTask final : public Task {
 public:
  // `settings` complete: layers and grid too. `file` names the modules in messages.
  AtpTask(const LoadedModel& model, const AtpExamples& examples, const AtpSettings& settings,
          const TrainAtpOptions& options, std::string file);

  at::Tensor loss(const Parameters& parameters, int64_t step) const override;
  StepLoss loss_in_parts(const Parameters& parameters, int64_t step) const override;
  std::vector<Score> evaluate(const Parameters& parameters) const override;
  // Topic "answers": exact answers, greedy, with tokens removed. Measures: soft_tokens and hard_tokens of a picture on
  // the average over layers, the loss of the answers under soft masks, mean thresholds of each module.
  Evaluation evaluate_after(const Parameters& parameters, int64_t step) const override;

  // The same with nothing removed: what there is to lose.
  double unpruned_accuracy(const Parameters& parameters) const;
  double temperature(int64_t step) const;

 private:
  struct Parts;
  Parts parts_of(const Parameters& parameters, const std::vector<AtpSequence>& batch, double temperature) const;
  DecoderWeights decoder_of(const Parameters& parameters) const;

  const LoadedModel& model_;
  const AtpExamples& examples_;
  AtpSettings settings_;
  const TrainAtpOptions& options_;
  std::string file_;
};

}  // namespace espalier
