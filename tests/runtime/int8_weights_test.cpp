// SPDX-License-Identifier: Apache-2.0
// int8 weights end to end, against the same model with its weights rounded by hand.
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include <cmath>

#include "runtime/generate.h"
#include "tests/support/folders.h"
#include "tests/support/tensors.h"

namespace espalier {
namespace {

const std::filesystem::path kModel = test::golden_folder() / "llava15";

// What int8 with one scale per row makes of a weight, by plain loops in float64.
at::Tensor rounded(const at::Tensor& weight) {
  at::Tensor result = weight.clone();
  for (int64_t r = 0; r < weight.size(0); ++r) {
    float* row = result.data_ptr<float>() + r * weight.size(1);
    double largest = 0;
    for (int64_t c = 0; c < weight.size(1); ++c) largest = std::max(largest, std::abs(static_cast<double>(row[c])));
    const double scale = largest / 127;
    for (int64_t c = 0; c < weight.size(1) && scale > 0; ++c)
      row[c] = static_cast<float>(std::nearbyint(row[c] / scale) * scale);
  }
  return result;
}

Request question() {
  Request request;
  request.prompt = Chat{{Message{"user", {TextPart{"What is in the picture, and where?"}}}}};
  request.options.max_new_tokens = 12;
  request.options.greedy = request.options.ignore_eos = true;
  return request;
}

TEST(Int8Weights, EqualTheRoundedModel) {
  EngineOptions options;
  options.dtype = ComputeDtype::kFloat32;
  LoadedModel by_hand = load_model(kModel, options);
  for (DecoderLayerWeights& layer : by_hand.weights.decoder.layers)
    for (at::Tensor* weight : {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down})
      *weight = rounded(*weight);
  by_hand.weights.decoder.head = rounded(by_hand.weights.decoder.head);
  options.int8_weights = true;
  const LoadedModel int8 = load_model(kModel, options);
  EXPECT_EQ(int8.weights.decoder.layers[0].q.scalar_type(), at::kChar);
  const Request request = question();
  EXPECT_EQ(generate(int8, request).token_ids, generate(by_hand, request).token_ids);
}

// The bound that the documentation states.
TEST(Int8Weights, NoWeightIsOffByMoreThanHalfAScale) {
  EngineOptions options;
  options.dtype = ComputeDtype::kFloat32;
  const LoadedModel exact = load_model(kModel, options);
  options.int8_weights = true;
  const LoadedModel int8 = load_model(kModel, options);
  const auto check = [](const at::Tensor& weight, const at::Tensor& quantised, const at::Tensor& scale) {
    const at::Tensor error =
        (quantised.to(at::kDouble) * scale.to(at::kDouble).unsqueeze(1) - weight.to(at::kDouble)).abs();
    const at::Tensor bound = weight.abs().amax(1).to(at::kDouble) / 254;
    EXPECT_TRUE((error <= bound.unsqueeze(1) * (1 + 1e-5)).all().item<bool>());
  };
  for (size_t i = 0; i < exact.weights.decoder.layers.size(); ++i) {
    const DecoderLayerWeights &a = exact.weights.decoder.layers[i], &b = int8.weights.decoder.layers[i];
    check(a.q, b.q, b.scales.q);
    check(a.down, b.down, b.scales.down);
  }
  check(exact.weights.decoder.head, int8.weights.decoder.head, int8.weights.decoder.head_scale);
}

}  // namespace
}  // namespace espalier
