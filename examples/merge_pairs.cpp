// SPDX-License-Identifier: Apache-2.0
// A policy of one's own that merges: before the decoder each pair of image tokens becomes its mean, at the first.
//   merge_pairs MODEL_FOLDER PICTURE QUESTION
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>

#include <cstdio>

#include "espalier/engine.h"
#include "espalier/ops.h"
#include "espalier/pruning.h"

using namespace espalier;
struct MergePairs : PruningPolicy {
  std::string spec() const override { return "merge_pairs"; }
  std::vector<Step> steps(const ModelFacts&, const PromptLayout&) const override {
    return {{.at = {Site::kProjectorOutput},
             .needs = [](const TokenLayout&) -> std::vector<Signal> { return {Tap{Tap::What::kHidden}}; },
             .decide =
                 [](const TokenLayout& layout, std::span<const at::Tensor> signals) {
                   const int64_t m = layout.num_image_tokens(), pairs = m / 2;
                   const at::Tensor tokens = ops::gather_rows(signals[0], layout.image_tokens.slice(0, 0, 2 * pairs));
                   const at::Tensor first = at::arange(pairs, layout.image_tokens.options()) * 2;
                   const NewTokens means{NewTokens::Where::kInPlace, tokens.view({pairs, 2, -1}).mean(1), first, first};
                   return Verdict{.kept = at::arange(2 * pairs, m, first.options()), .added = {means}};
                 }}};
  }
};

int main(int argc, char** argv) try {
  if (argc != 4) return std::fprintf(stderr, "usage: merge_pairs MODEL_FOLDER PICTURE QUESTION\n"), 2;
  const ImagePart picture{.image = std::make_shared<const Image>(read_image(argv[2]))};
  Request request;
  request.prompt = in_context_chat({}, picture, argv[3]), request.custom = std::make_shared<MergePairs>();
  request.options.max_new_tokens = 16;
  const Stats s = Engine::load(argv[1]).generate(request).stats;
  std::printf("%ld tokens entered the decoder instead of %ld\n", long(s.tokens_per_layer[0]), long(s.prompt_tokens));
} catch (const std::exception& error) {
  return std::fprintf(stderr, "merge_pairs: %s\n", error.what()), 2;
}
