// SPDX-License-Identifier: Apache-2.0
#include "runtime/stats_recorder.h"

#include <ATen/Parallel.h>

#include <algorithm>

#include "runtime/flops.h"

namespace espalier {

namespace {

// Tokens of each image; `images` int64 [n], -1 for text.
std::vector<int64_t> count_images(const at::Tensor& images, size_t num_images) {
  const at::Tensor host = images.cpu();
  std::vector<int64_t> counts(num_images, 0);
  for (int64_t i = 0; i < host.size(0); ++i)
    if (const int64_t image = host.const_data_ptr<int64_t>()[i]; image >= 0) ++counts[static_cast<size_t>(image)];
  return counts;
}

}  // namespace

StatsRecorder::StatsRecorder(const DecoderConfig& config, const PromptLayout& prompt, int64_t bytes_per_kv_row)
    : config_(config), bytes_per_kv_row_(bytes_per_kv_row) {
  stats_.prefill_flops_unpruned =
      prefill_flops(config, std::vector<int64_t>(static_cast<size_t>(config.num_layers), prompt.num_tokens));
  stats_.kv_bytes_unpruned = config.num_layers * prompt.num_tokens * bytes_per_kv_row;
}

void StatsRecorder::entered_layer(const at::Tensor& image_of_tokens, int64_t computed) {
  const int64_t n = image_of_tokens.size(0);
  stats_.tokens_per_layer.push_back(n);
  stats_.prefill_flops += layer_flops(config_, n) - layer_flops(config_, n - computed);
  image_of_tokens_.push_back(image_of_tokens);
}

void StatsRecorder::cached(const SequenceKv& kv) {
  for (int layer = 0; layer < kv.num_layers(); ++layer) stats_.kv_tokens_per_layer.push_back(kv.rows(layer));
  stats_.kv_bytes = stats_.kv_bytes_most = bytes_of(kv);
}

void StatsRecorder::grown(const SequenceKv& kv) {
  stats_.kv_bytes_most = std::max(stats_.kv_bytes_most, bytes_of(kv));
}

int64_t StatsRecorder::bytes_of(const SequenceKv& kv) const {
  int64_t rows = 0;
  for (int layer = 0; layer < kv.num_layers(); ++layer) rows += kv.rows(layer);
  return rows * bytes_per_kv_row_;
}

void StatsRecorder::take_over(const StatsRecorder& other) {
  stats_ = other.stats_;
  image_of_tokens_ = other.image_of_tokens_;
}

Stats StatsRecorder::finish(const PromptLayout& prompt, int64_t new_tokens) {
  for (size_t layer = 0; layer < image_of_tokens_.size(); ++layer)
    stats_.image_tokens_per_layer.push_back(layer > 0 && image_of_tokens_[layer].is_same(image_of_tokens_[layer - 1])
                                                ? stats_.image_tokens_per_layer.back()
                                                : count_images(image_of_tokens_[layer], prompt.images.size()));
  stats_.prompt_tokens = prompt.num_tokens;
  for (size_t image = 0; image < prompt.images.size(); ++image)
    stats_.image_tokens.push_back(prompt.num_image_tokens(static_cast<int>(image), true));
  stats_.new_tokens = new_tokens;
  stats_.threads = at::get_num_threads();
  return std::move(stats_);
}

}  // namespace espalier
