// SPDX-License-Identifier: Apache-2.0
// A policy of one's own that ranks: before the decoder, the quarter of each image's tokens with the largest norm stays.
//   keep_norms MODEL_FOLDER PICTURE QUESTION
#include <ATen/ops/linalg_vector_norm.h>

#include <cstdio>

#include "espalier/engine.h"
#include "espalier/error.h"
#include "espalier/pruning.h"

using namespace espalier;

struct KeepNorms : PruningPolicy {
  std::string spec() const override { return "keep_norms"; }
  std::vector<Step> steps(const ModelFacts&, const PromptLayout&) const override {
    return {{.at = {Site::kProjectorOutput},
             .scope = Scope::kImage,
             .budget = {.pool = Budget::Pool::kImage, .amount = {.keep_ratio = Fraction{1, 4}}},
             .needs = [](const TokenLayout&) -> std::vector<Signal> { return {Tap{Tap::What::kHidden}}; },
             .decide =
                 [](const TokenLayout& layout, std::span<const at::Tensor> signals) {
                   const at::Tensor norms = at::linalg_vector_norm(signals[0].to(at::kFloat), 2, at::IntArrayRef({1}));
                   return Verdict{.scores = norms.index_select(0, layout.image_tokens)};
                 }}};
  }
};

int main(int argc, char** argv) try {
  if (argc != 4) return std::fprintf(stderr, "usage: keep_norms MODEL_FOLDER PICTURE QUESTION\n"), 2;
  const ImagePart picture{.image = std::make_shared<const Image>(read_image(argv[2]))};
  Request request;
  request.prompt = in_context_chat({}, picture, argv[3]);
  request.custom = std::make_shared<KeepNorms>();
  request.options.max_new_tokens = 16;
  const Result result = Engine::load(argv[1]).generate(request);
  std::printf("%s\n%zu image tokens kept\n", result.text.c_str(), result.kept.size());
} catch (const Error& error) {
  return std::fprintf(stderr, "keep_norms: %s\n", error.what()), 2;
}
