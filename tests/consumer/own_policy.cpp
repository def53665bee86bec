// SPDX-License-Identifier: Apache-2.0
// A policy of a user's own, in the user's program: own_policy MODEL_FOLDER IMAGE. It keeps every other token of the
// sequence before decoder layer 2 and asks for an attention signal, so that signals reach outside policies too.
#include <ATen/ops/arange.h>
#include <espalier/engine.h>
#include <espalier/error.h>
#include <espalier/pruning.h>

#include <atomic>
#include <cstdio>
#include <memory>

namespace {

using namespace espalier;

class EveryOther final : public PruningPolicy {
 public:
  std::string spec() const override { return "every_other"; }

  std::vector<Step> steps(const ModelFacts& model, const PromptLayout&) const override {
    if (model.num_layers <= 2) throw Error("every_other: the model has no layer 2");
    return {{.at = {Site::kBeforeLayer, 2},
             .needs = [](const TokenLayout&) -> std::vector<Signal> { return {AttentionProbe{.layer = 1}}; },
             .decide = [this](const TokenLayout& layout,
                              std::span<const at::Tensor> signals) { return decide(layout, signals); }}};
  }

  Verdict decide(const TokenLayout& layout, std::span<const at::Tensor> signals) const {
    if (signals.size() == 1 && signals[0].numel() == layout.num_image_tokens()) ++decisions;
    return {.kept = at::arange(0, layout.num_image_tokens(), 2, layout.image_tokens.options()), .scores = signals[0]};
  }

  mutable std::atomic<int> decisions = 0;  // with the signal as it was asked for
};

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 3) return 2;
  const Engine engine = Engine::load(argv[1]);
  ImagePart picture;
  picture.image = std::make_shared<const Image>(read_image(argv[2]));
  const auto policy = std::make_shared<EveryOther>();
  Request request;
  request.prompt = Chat{{{"user", {picture, TextPart{"What is in the picture?"}}}}};
  request.custom = policy;
  request.options.greedy = true;
  request.options.max_new_tokens = 4;
  const Result result = engine.generate(request);

  const int64_t entered = result.stats.image_tokens.at(0);
  const int64_t before = result.stats.image_tokens_per_layer.at(1).at(0);
  const int64_t after = result.stats.image_tokens_per_layer.at(2).at(0);
  std::printf("image tokens: %ld, entering layer 1: %ld, entering layer 2: %ld, decisions: %d\n",
              static_cast<long>(entered), static_cast<long>(before), static_cast<long>(after),
              policy->decisions.load());
  return before == entered && after == (entered + 1) / 2 && policy->decisions == 1 ? 0 : 1;
} catch (const Error& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 2;
}
