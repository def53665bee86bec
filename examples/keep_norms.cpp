// SPDX-License-Identifier: Apache-2.0
// A policy of one's own that selects: before the decoder, the quarter of each image's tokens with the largest norm
// stays.
//   keep_norms MODEL_FOLDER PICTURE QUESTION
#include <ATen/ops/cat.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/tensor.h>

#include <cstdio>
#include <memory>

#include "espalier/engine.h"
#include "espalier/error.h"
#include "espalier/ops.h"
#include "espalier/pruning.h"

class KeepNorms : public espalier::PruningPolicy {
 public:
  std::string spec() const override { return "keep_norms"; }

  std::vector<espalier::ActPoint> points(const espalier::ModelFacts&, const espalier::PromptLayout&) const override {
    return {{espalier::Site::kProjectorOutput}};
  }

  std::vector<espalier::Signal> needs(const espalier::ActPoint&, const espalier::TokenLayout&,
                                      const State*) const override {
    return {espalier::Tap{espalier::Tap::What::kHidden}};  // [n, d], text and image tokens
  }

  espalier::Verdict decide(const espalier::ActPoint&, const espalier::TokenLayout& layout,
                           std::span<const at::Tensor> signals, State*) const override {
    const at::Tensor tokens = espalier::ops::gather_rows(signals[0], layout.image_tokens);
    std::vector<int64_t> block_begin = {0}, num_kept;
    for (size_t image = 0; image < layout.prompt->images.size(); ++image) {
      const int64_t m = layout.prompt->num_patches(static_cast<int>(image));
      block_begin.push_back(block_begin.back() + m);
      num_kept.push_back((m + 3) / 4);
    }
    const at::Tensor norms = at::linalg_vector_norm(tokens.to(at::kFloat), 2, at::IntArrayRef({1}));
    return {.kept =
                espalier::ops::topk_sorted(norms, at::tensor(block_begin, at::kLong), at::tensor(num_kept, at::kLong))};
  }
};

int main(int argc, char** argv) {
  if (argc != 4) return std::fprintf(stderr, "usage: keep_norms MODEL_FOLDER PICTURE QUESTION\n"), 2;
  try {
    const auto engine = espalier::Engine::load(argv[1]);
    espalier::Request request;
    request.prompt = espalier::in_context_chat(
        {}, {.image = std::make_shared<const espalier::Image>(espalier::read_image(argv[2])), .pins = {}}, argv[3]);
    request.custom = std::make_shared<KeepNorms>();
    request.options.max_new_tokens = 16;
    const espalier::Result result = engine.generate(request);
    std::printf("%s\n%zu image tokens kept\n", result.text.c_str(), result.kept.size());
  } catch (const espalier::Error& error) {
    return std::fprintf(stderr, "keep_norms: %s\n", error.what()), 2;
  }
}
