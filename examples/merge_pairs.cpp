// SPDX-License-Identifier: Apache-2.0
// A policy of one's own that merges: before the decoder, tokens 0 and 1, 2 and 3, … of the request's image tokens
// become their mean, which stands at the first of the two.
//   merge_pairs MODEL_FOLDER PICTURE QUESTION
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>

#include <cstdio>
#include <memory>

#include "espalier/engine.h"
#include "espalier/error.h"
#include "espalier/ops.h"
#include "espalier/pruning.h"

class MergePairs : public espalier::PruningPolicy {
 public:
  std::string spec() const override { return "merge_pairs"; }
  std::vector<espalier::ActPoint> points(const espalier::ModelFacts&, const espalier::PromptLayout&) const override {
    return {{espalier::Site::kProjectorOutput}};
  }

  std::vector<espalier::Signal> needs(const espalier::ActPoint&, const espalier::TokenLayout&,
                                      const State*) const override {
    return {espalier::Tap{espalier::Tap::What::kHidden}};
  }

  espalier::Verdict decide(const espalier::ActPoint&, const espalier::TokenLayout& layout,
                           std::span<const at::Tensor> signals, State*) const override {
    const int64_t pairs = layout.num_image_tokens() / 2;
    const at::Tensor tokens = espalier::ops::gather_rows(signals[0], layout.image_tokens.slice(0, 0, 2 * pairs));
    const at::Tensor first = at::arange(pairs, layout.image_tokens.options()) * 2;
    espalier::NewTokens merged{.where = espalier::NewTokens::Where::kInPlace,
                               .vectors = tokens.view({pairs, 2, -1}).mean(1),
                               .stands_at = first,
                               .position_from = first};
    // An odd token at the end stays as it is.
    const at::Tensor rest = at::arange(2 * pairs, layout.num_image_tokens(), layout.image_tokens.options());
    return {.kept = rest, .added = {merged}};
  }
};

int main(int argc, char** argv) {
  if (argc != 4) return std::fprintf(stderr, "usage: merge_pairs MODEL_FOLDER PICTURE QUESTION\n"), 2;
  try {
    const auto engine = espalier::Engine::load(argv[1]);
    espalier::Request request;
    request.prompt = espalier::in_context_chat(
        {}, {.image = std::make_shared<const espalier::Image>(espalier::read_image(argv[2])), .pins = {}}, argv[3]);
    request.custom = std::make_shared<MergePairs>();
    request.options.max_new_tokens = 16;
    const espalier::Result result = engine.generate(request);
    std::printf("%s\n%ld tokens entered the decoder instead of %ld\n", result.text.c_str(),
                static_cast<long>(result.stats.tokens_per_layer[0]), static_cast<long>(result.stats.prompt_tokens));
  } catch (const espalier::Error& error) {
    return std::fprintf(stderr, "merge_pairs: %s\n", error.what()), 2;
  }
}
