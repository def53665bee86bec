// SPDX-License-Identifier: Apache-2.0
#include "espalier/session.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/isin.h>
#include <ATen/ops/tensor.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <limits>

#include "espalier/target.h"
#include "runtime/engine_impl.h"
#include "runtime/out_of_memory.h"
#include "runtime/waiting_call.h"

namespace espalier {

namespace {

// A session's policy in later turns, where what is gone stays gone: in each step that looks at the request, tokens that
// an earlier turn dropped rank behind all others, and are kept by no choice. Where no step does, the same tokens leave
// in every turn anyway.
class Sticky final : public PruningPolicy {
 public:
  // gone[i]: ordinals among the tokens of image i.
  Sticky(PolicyPtr inner, std::vector<std::vector<int64_t>> gone) : inner_(std::move(inner)), gone_(std::move(gone)) {}

  std::string spec() const override { return inner_->spec(); }
  CommonOptions common() const override { return inner_->common(); }
  bool row_breaks_compete() const override { return inner_->row_breaks_compete(); }
  ImageShape wanted_shape(const ModelFacts& model, const ImageShape& shape) const override {
    return inner_->wanted_shape(model, shape);
  }
  std::vector<Step> steps(const ModelFacts& model, const PromptLayout& prompt) const override {
    std::vector<Step> steps = inner_->steps(model, prompt);
    for (Step& step : steps) {
      if (step.scope != Scope::kRequest || step.at.site == Site::kCache || !step.decide) continue;
      step.decide = [inner = step.decide, sources = sources_of(prompt)](const TokenLayout& layout,
                                                                        std::span<const at::Tensor> signals) {
        return without(inner(layout, signals), is_gone(layout, sources));
      };
    }
    return steps;
  }

 private:
  // bool [m]
  static at::Tensor is_gone(const TokenLayout& layout, const std::vector<int64_t>& sources) {
    const at::Tensor own = layout.source_index.index_select(0, layout.image_tokens);
    return at::isin(own, at::tensor(sources, at::kLong).to(own.device()));
  }
  static at::Tensor kept_without(const at::Tensor& kept, const at::Tensor& gone) {
    return kept.index_select(0, gone.index_select(0, kept).logical_not().nonzero().squeeze(1));
  }
  static Verdict without(Verdict verdict, const at::Tensor& gone) {
    if (verdict.kept.defined()) {
      verdict.kept = kept_without(verdict.kept, gone);
    } else if (verdict.choose) {
      verdict.choose = [choose = verdict.choose, gone](const Pools& pools) {
        Choice choice = choose(pools);
        choice.kept = kept_without(choice.kept, gone);
        return choice;
      };
    } else if (verdict.scores.defined()) {
      verdict.scores = verdict.scores.masked_fill(gone, -std::numeric_limits<float>::infinity());
    }
    return verdict;
  }

  std::vector<int64_t> sources_of(const PromptLayout& prompt) const {
    std::vector<int64_t> sources;
    std::vector<int64_t> seen(prompt.images.size(), 0);  // tokens of each image so far
    for (const Segment& segment : prompt.segments) {
      if (segment.image < 0) continue;
      int64_t& ordinal = seen[static_cast<size_t>(segment.image)];
      for (int64_t token = segment.begin; token < segment.end; ++token, ++ordinal)
        if (static_cast<size_t>(segment.image) < gone_.size() &&
            std::ranges::binary_search(gone_[static_cast<size_t>(segment.image)], ordinal))
          sources.push_back(token);
    }
    return sources;
  }

  PolicyPtr inner_;
  std::vector<std::vector<int64_t>> gone_;
};

PolicyPtr sticky(const PolicyPtr& policy, const std::vector<std::vector<int64_t>>& gone) {
  const std::optional<Target> target = target_of(*policy);
  if (!target) return std::make_shared<const Sticky>(policy, gone);
  return with_target(policy->spec(), *target, [policy, gone](Fraction keep_ratio) -> PolicyPtr {
    return std::make_shared<const Sticky>(at_ratio(*policy, keep_ratio), gone);
  });
}

// Of each image, the ordinals of its tokens that did not survive. kept: source indices, ascending.
std::vector<std::vector<int64_t>> gone_of(const PromptLayout& prompt, const std::vector<int64_t>& kept) {
  std::vector<std::vector<int64_t>> gone(prompt.images.size());
  std::vector<int64_t> seen(prompt.images.size(), 0);
  for (const Segment& segment : prompt.segments) {
    if (segment.image < 0) continue;
    const auto image = static_cast<size_t>(segment.image);
    for (int64_t token = segment.begin; token < segment.end; ++token, ++seen[image])
      if (segment.kind == Segment::Kind::kPatches && !std::ranges::binary_search(kept, token))
        gone[image].push_back(seen[image]);
  }
  return gone;
}

}  // namespace

struct Session::Impl {
  const Engine& engine;
  SessionOptions options;
  PolicyPtr policy;
  Chat chat;
  PrefixPtr prefix;                        // of the last turn; held, so that nothing evicts it
  std::vector<std::vector<int64_t>> gone;  // sticky
};

Session::Session(const Engine& engine, const SessionOptions& options)
    : impl_(new Impl{engine,
                     options,
                     for_model(options.custom ? options.custom : make_policy(options.policy), engine.facts()),
                     {},
                     {},
                     {}}) {
  if (!options.system.empty()) impl_->chat.messages.push_back({"system", {TextPart{options.system}}});
}
Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;
Session::~Session() = default;

const Chat& Session::chat() const {
  return impl_->chat;
}

Result Session::ask(const std::string& text, const Callbacks& callbacks) {
  return in_our_words([&] { return ask(std::vector<Part>{TextPart{text}}, callbacks); });
}

Result Session::ask(std::vector<Part> turn, const Callbacks& callbacks) try {
  const c10::InferenceMode no_gradients;
  Impl& self = *impl_;
  const Engine::Impl& engine = self.engine.impl();
  Chat chat = self.chat;
  chat.messages.push_back({"user", std::move(turn)});
  Request request;
  request.prompt = chat;
  request.options = self.options.generation;
  request.custom = self.gone.empty() ? self.policy : sticky(self.policy, self.gone);
  const auto call = std::make_shared<WaitingCall>(callbacks, 1);
  SharedSchedule::Runs runs;
  runs.push_back(std::make_unique<RequestRun>(engine.model, request, 0, call, RunExtras{.uses_prefixes = true}));
  runs[0]->sequence.custom = self.options.custom;  // turns know each other's prefixes by the session's policy
  runs[0]->held = self.prefix;
  const std::shared_ptr<const PromptLayout> layout = runs[0]->sequence.prompt.layout;
  engine.schedule->admit(std::move(runs));
  Result result = std::move(call->wait()[0]);
  if (result.finish_reason == FinishReason::kCancelled) return result;
  chat.messages.push_back({"assistant", {TextPart{result.text}}});
  if (self.options.sticky) self.gone = gone_of(*layout, result.kept);
  self.prefix = call->prefix();
  self.chat = std::move(chat);
  return result;
} catch (...) {
  rethrow_in_our_words(std::current_exception());
}

}  // namespace espalier
