// SPDX-License-Identifier: Apache-2.0
#include "training/language_task.h"

#include <torch/types.h>

namespace espalier {

at::Tensor LanguageTask::loss(const Parameters& parameters, int64_t step) const {
  const TrainingBatch drawn = batch(step, /*is_evaluation=*/false);
  const TrainingPass pass = run_decoder(config_, bind_parameters(config_, parameters, options_.dtype), drawn,
                                        {.share_layers = options_.share_layers});
  const at::Tensor answers = answer_loss(pass.logits, drawn);
  return pass.image_share.defined() ? answers + options_.share_weight * pass.image_share : answers;
}

std::vector<Score> LanguageTask::evaluate(const Parameters& parameters) const {
  return evaluate(parameters, {});
}

std::vector<Score> LanguageTask::evaluate_without_images(const Parameters& parameters, int from_layer) const {
  return evaluate(parameters, {.drop_images_before = from_layer});
}

double LanguageTask::evaluation_loss_without(const Parameters& parameters, const std::vector<int>& layers) const {
  const torch::NoGradGuard no_gradients;
  LlavaConfig shallow = config_;
  LlavaWeights weights = bind_parameters(config_, parameters, options_.dtype);
  for (auto layer = layers.rbegin(); layer != layers.rend(); ++layer)
    weights.decoder.layers.erase(weights.decoder.layers.begin() + *layer);
  shallow.decoder.num_layers = static_cast<int>(weights.decoder.layers.size());
  double sum = 0;
  for (int i = 0; i < 2; ++i) {
    const TrainingBatch drawn = batch(i, /*is_evaluation=*/true);
    sum += answer_loss(run_decoder(shallow, weights, drawn).logits, drawn).item<double>();
  }
  return sum / 2;
}

std::vector<Score> LanguageTask::evaluate(const Parameters& parameters, const TrainingPassOptions& pass) const {
  const torch::NoGradGuard no_gradients;
  const LlavaWeights weights = bind_parameters(config_, parameters, options_.dtype);
  std::vector<Score> scores;
  for (const std::string& topic : topics()) scores.push_back({.topic = topic});
  for (int i = 0; i < options_.evaluation_batches; ++i) {
    const TrainingBatch drawn = batch(i, /*is_evaluation=*/true);
    count_hits(run_decoder(config_, weights, drawn, pass).logits, drawn, scores);
  }
  std::erase_if(scores, [](const Score& s) { return s.count == 0; });  // what this stage does not ask
  return scores;
}

void count_hits(const at::Tensor& logits, const TrainingBatch& batch, std::vector<Score>& scores) {
  const at::Tensor hit = logits.argmax(-1) == batch.targets;
  const auto hits = hit.accessor<bool, 1>();
  for (size_t i = 0; i < batch.topic.size(); ++i) {
    if (batch.topic[i] < 0) continue;
    Score& score = scores[static_cast<size_t>(batch.topic[i])];
    score.correct += hits[static_cast<int64_t>(i)];
    ++score.count;
  }
}

}  // namespace espalier
