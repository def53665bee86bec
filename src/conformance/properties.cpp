// SPDX-License-Identifier: Apache-2.0
#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/isin.h>
#include <ATen/ops/ones_like.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <numeric>
#include <utility>

#include "conformance/made_up_run.h"
#include "espalier/policy_properties.h"
#include "layout/policy_walk.h"
#include "recording/recorded_answer.h"
#include "recording/recorded_signals.h"

namespace espalier {

ModelFacts conformance_model() {
  return {.num_layers = 8,
          .hidden_size = 16,
          .num_heads = 4,
          .num_kv_heads = 2,
          .head_dim = 4,
          .intermediate_size = 32,
          .sliding_window = 0,
          .has_mrope = false,
          .vision_layers = 4,
          .vision_feature_layer = 2,
          .vision_heads = 2,
          .vision_hidden_size = 8,
          .has_class_token = true,
          .has_text_tower = true};
}

namespace conformance {

namespace {

using Tokens = std::vector<int64_t>;

constexpr Fraction kHalf{1, 2}, kThird{1, 3}, kTwoThirds{2, 3}, kOne{1, 1};

std::string text_of(const Tokens& tokens) {
  std::string text = "{";
  for (const int64_t t : tokens) text += (text.size() > 1 ? " " : "") + std::to_string(t);
  return text + "}";
}

std::string site_of(const PointTrace& point) {
  return point.site + (point.layer >= 0 ? " " + std::to_string(point.layer) : "");
}

// A policy on its way through a made-up run.
class Walk {
 public:
  Walk(PolicyPtr policy, const ModelFacts& model, const MadeUpRun& run)
      : walk_(std::move(policy), model, run.prompt),
        signals_(run.arrays, "made-up signals"),
        answer_(walk_, signals_, MadeUpRun::kGenerated) {}
  Walk(const Walk&) = delete;  // the answer is this walk's
  Walk& operator=(const Walk&) = delete;

  bool step() {
    const ActPoint* point = walk_.next();
    if (!point) return answer_.step();
    std::vector<at::Tensor> answers;
    for (const Signal& signal : walk_.needs()) answers.push_back(signals_.compute(signal, *point, walk_.layout()));
    walk_.act(answers);
    return true;
  }
  Walk& finish() {
    while (step()) {
    }
    return *this;
  }
  // Of the next step: whether budgets below its own keep parts of what it keeps.
  std::string check_nested() const {
    const ActPoint* point = walk_.next();
    if (!point) return "";
    PlannedStep planned = walk_.steps()[walk_.trace(false).size()];
    if (!planned.step.is_nested || planned.step.only_reads) return "";
    std::vector<at::Tensor> answers;
    for (const Signal& signal : walk_.needs()) answers.push_back(signals_.compute(signal, *point, walk_.layout()));
    Verdict verdict = planned.step.decide(walk_.layout(), answers);
    if (verdict.kept.defined()) return "";  // a set, not a ranking
    if (planned.counts.empty()) planned.counts = verdict.num_kept;
    if (planned.counts.empty()) return "";  // what the data let through
    verdict.num_kept = {};
    at::Tensor larger = cut_of(walk_.layout(), planned, verdict, 0).kept;
    while (std::ranges::any_of(planned.counts, [](int64_t n) { return n > 0; })) {
      for (int64_t& n : planned.counts) n = std::max<int64_t>(0, n - 1);
      const at::Tensor smaller = cut_of(walk_.layout(), planned, verdict, 0).kept;
      const auto heads = [](const at::Tensor& kept) { return kept.dim() == 2 ? kept.unbind() : std::vector{kept}; };
      const auto few = heads(smaller), many = heads(larger);
      for (size_t h = 0; h < few.size(); ++h)
        if (!at::isin(few[h], many[h]).all().item<bool>())
          return to_string(*point) + ": with a smaller budget it keeps tokens that a larger one drops";
      larger = smaller;
    }
    return "";
  }
  const PolicyWalk& walk() const { return walk_; }
  const TokenLayout& layout() const { return walk_.layout(); }
  std::vector<PointTrace> trace() const { return walk_.trace(false); }
  // Source indices of the image tokens at the end; those of a cache are not counted, they stay in the stream.
  Tokens kept() const { return walk_.kept_sources(); }

 private:
  PolicyWalk walk_;
  RecordedSignals signals_;
  RecordedAnswer answer_;
};

// What a scope names, of the image (or, where `crop` is 0 or more, the crop) that is looked at.
struct Inside {
  Scope scope;
  int image, crop;
  std::vector<bool> is_outside;  // by token
  bool has(const PromptLayout& prompt, int64_t source) const {
    return source >= 0 && prompt.image[source].item<int64_t>() == image &&
           (crop < 0 || prompt.crop[source].item<int64_t>() == crop);
  }
};

std::vector<Inside> insides_of(const PromptLayout& prompt) {
  std::vector<Inside> all;
  for (const CropFacts& crop : crops_of(prompt))
    for (const Scope scope : {Scope::kCrop, Scope::kImage, Scope::kExample, Scope::kPrefix}) {
      if (scope != Scope::kCrop && crop.crop > 0) continue;
      Inside inside{scope, crop.image, scope == Scope::kCrop ? crop.crop : -1, {}};
      const int example = prompt.example_of_image(crop.image);
      for (const Segment& s : prompt.segments) {
        const bool is_inside = scope == Scope::kCrop      ? s.image == crop.image && s.crop == crop.crop
                               : scope == Scope::kImage   ? s.image == crop.image
                               : scope == Scope::kExample ? s.example == example
                                                          : s.example <= example;
        inside.is_outside.insert(inside.is_outside.end(), static_cast<size_t>(s.end - s.begin), !is_inside);
      }
      all.push_back(std::move(inside));
    }
  return all;
}

// The new vectors of what is looked at that point i brought, in the order of the sequence.
std::vector<at::Tensor> new_vectors(const PolicyWalk& walk, size_t i, const Inside& inside) {
  std::vector<at::Tensor> vectors;
  const auto merged = walk.merged(i);
  if (!merged) return vectors;
  const int64_t n = merged->before.num_tokens();
  for (int64_t t = 0; t < merged->index.size(0); ++t) {
    const int64_t row = merged->index[t].item<int64_t>();
    if (row >= n && inside.has(*merged->before.prompt, merged->position_from[t].item<int64_t>()))
      vectors.push_back(merged->vectors[row - n]);
  }
  return vectors;
}

// Kept tokens and scores of what is looked at, step by step while the steps so far have no wider scope.
std::string compare_inside(Walk& walked, Walk& changed, const Inside& inside) {
  Scope widest = Scope::kCrop;
  for (size_t i = 0; i < walked.walk().boundary(); ++i) {
    widest = std::max(widest, walked.walk().steps()[i].step.scope);
    walked.step();
    changed.step();
    if (widest > inside.scope) return "";
    const PointTrace a = walked.walk().last_point(), b = changed.walk().last_point();
    const PromptLayout& prompt = *walked.layout().prompt;
    const auto own = [&](const Tokens& tokens) {
      Tokens list;
      for (const int64_t t : tokens)
        if (inside.has(prompt, t)) list.push_back(t);
      return list;
    };
    const std::string where =
        site_of(a) + ": image " + std::to_string(inside.image) + ", of which nothing changed within the scope, ";
    if (own(a.kept) != own(b.kept)) return where + "kept " + text_of(own(a.kept)) + ", then " + text_of(own(b.kept));
    for (size_t t = 0; t < a.scores.size() && t < b.scores.size(); ++t)
      if (inside.has(prompt, a.candidates[t]) && std::abs(a.scores[t] - b.scores[t]) > 1e-5F)
        return where + "got other scores";
    const std::vector<at::Tensor> entered = new_vectors(walked.walk(), i, inside),
                                  then = new_vectors(changed.walk(), i, inside);
    if (entered.size() != then.size()) return where + "became another number of new tokens";
    for (size_t t = 0; t < entered.size(); ++t)
      if (!entered[t].allclose(then[t], 1e-4, 1e-5)) return where + "got other vectors";
  }
  return "";
}

Walk walk(const ConformingPolicy& policy, Fraction ratio, const MadeUpRun& run) {
  return {policy.make(ratio), policy.model, run};
}

// A property runs code of the user's, which may throw: that too is an answer.
template <typename Property>
std::string answer(Property&& property) {
  try {
    return property();
  } catch (const std::exception& error) {
    const std::string message = error.what();
    return "it threw: " + message.substr(0, message.find('\n'));
  }
}

std::vector<MadeUpPrompt> usual_prompts() {
  return {{.images = {{3, 3}}}, {.images = {{3, 3}, {2, 5}, {4, 4}}}, {.images = {{6, 6}, {6, 6}}}};
}

Tokens lists_of(const PointTrace& point, size_t head) {
  return point.kept_per_head.empty() ? point.kept : point.kept_per_head[head];
}

std::string check_point(const PointTrace& point, const Tokens& before) {
  for (size_t head = 0; head < std::max<size_t>(1, point.kept_per_head.size()); ++head) {
    const Tokens kept = lists_of(point, head);
    if (!std::is_sorted(kept.begin(), kept.end(), std::less_equal<>()))
      return site_of(point) + ": kept tokens are not ascending and different: " + text_of(kept);
    if (!std::includes(before.begin(), before.end(), kept.begin(), kept.end()))
      return site_of(point) + ": kept " + text_of(kept) + ", but before the point there were " + text_of(before);
  }
  return "";
}

Tokens patches_of(const PromptLayout& prompt, bool with_row_breaks) {
  Tokens tokens;
  for (const Segment& s : prompt.segments)
    if (s.kind == Segment::Kind::kPatches || (with_row_breaks && s.kind == Segment::Kind::kRowBreak))
      for (int64_t t = s.begin; t < s.end; ++t) tokens.push_back(t);
  return tokens;
}

std::string check_walk(const ConformingPolicy& policy, Fraction ratio, const MadeUpRun& run) {
  const PolicyPtr made = policy.make(ratio);
  Walk walked(made, policy.model, run);
  Tokens before = patches_of(*run.prompt, made->row_breaks_compete());
  for (const PointTrace& point : walked.finish().trace()) {
    if (std::string wrong = check_point(point, before); !wrong.empty()) return wrong;
    if (point.kept_per_head.empty()) before = point.kept;
  }
  return "";
}

int64_t rounded_up(Fraction ratio, int64_t n) {
  return (ratio.num * n + ratio.den - 1) / ratio.den;
}

std::string compare(const std::vector<PointTrace>& a, const std::vector<PointTrace>& b) {
  if (a.size() != b.size())
    return "it acted at " + std::to_string(a.size()) + " points, then at " + std::to_string(b.size());
  for (size_t i = 0; i < a.size(); ++i)
    for (size_t head = 0; head < std::max<size_t>(1, a[i].kept_per_head.size()); ++head)
      if (lists_of(a[i], head) != lists_of(b[i], head))
        return site_of(a[i]) + ": it kept " + text_of(lists_of(a[i], head)) + ", then " + text_of(lists_of(b[i], head));
  return "";
}

std::string works_with(const ConformingPolicy& policy, const MadeUpPrompt& prompt) {
  return answer([&] {
    for (const Fraction ratio : {kThird, kHalf, kOne})
      if (std::string wrong = check_walk(policy, ratio, make_up_run(policy.model, prompt, 5)); !wrong.empty())
        return wrong;
    return std::string();
  });
}

}  // namespace

std::string keeps_tokens_that_are_there(const ConformingPolicy& policy) {
  for (const MadeUpPrompt& prompt : usual_prompts())
    if (std::string wrong = works_with(policy, prompt); !wrong.empty()) return wrong;
  return "";
}

std::string keeps_text(const ConformingPolicy& policy) {
  return answer([&] {
    for (const MadeUpPrompt& prompt : usual_prompts()) {
      const MadeUpRun run = make_up_run(policy.model, prompt, 2);
      Walk walked = walk(policy, kThird, run);
      const auto texts = [](const at::Tensor& kind) {
        return (kind == static_cast<int64_t>(Segment::Kind::kText)).sum().item<int64_t>();
      };
      const int64_t before = texts(run.prompt->kind), after = texts(walked.finish().layout().kind);
      if (before != after) return std::to_string(before) + " tokens of text became " + std::to_string(after);
    }
    return std::string();
  });
}

std::string keeps_the_share(const ConformingPolicy& policy) {
  return answer([&] {
    for (const MadeUpPrompt& prompt : usual_prompts())
      for (const Fraction ratio : {kThird, kHalf, kTwoThirds}) {
        const MadeUpRun run = make_up_run(policy.model, prompt, 3);
        int64_t budget = 0;
        for (size_t i = 0; i < prompt.images.size(); ++i)
          budget += rounded_up(ratio, run.prompt->num_patches(static_cast<int>(i)));
        Walk walked = walk(policy, ratio, run);
        const int64_t left = walked.finish().layout().num_image_tokens();
        if (left > budget)
          return "keep_ratio " + std::to_string(ratio.num) + "/" + std::to_string(ratio.den) + ": " +
                 std::to_string(left) + " image tokens are left, the shares of the images add up to " +
                 std::to_string(budget);
      }
    return std::string();
  });
}

std::string keeps_each_share(const ConformingPolicy& policy) {
  return answer([&] {
    for (const MadeUpPrompt& prompt : usual_prompts())
      for (const Fraction ratio : {kThird, kHalf, kTwoThirds}) {
        const MadeUpRun run = make_up_run(policy.model, prompt, 3);
        Walk walked = walk(policy, ratio, run);
        const TokenLayout& layout = walked.finish().layout();
        const at::Tensor image = layout.image.index_select(0, layout.image_tokens);
        for (size_t i = 0; i < prompt.images.size(); ++i) {
          const int64_t share = ratio.num * run.prompt->num_patches(static_cast<int>(i)) / ratio.den;
          const int64_t left = (image == static_cast<int64_t>(i)).sum().item<int64_t>();
          if (left < share)
            return "keep_ratio " + std::to_string(ratio.num) + "/" + std::to_string(ratio.den) + ": image " +
                   std::to_string(i) + " is left with " + std::to_string(left) + " tokens, its share is " +
                   std::to_string(share);
        }
      }
    return std::string();
  });
}

std::string keeps_all_at_one(const ConformingPolicy& policy) {
  return answer([&] {
    for (const MadeUpPrompt& prompt : usual_prompts()) {
      const MadeUpRun run = make_up_run(policy.model, prompt, 4);
      Walk walked = walk(policy, kOne, run);
      const TokenLayout& layout = walked.finish().layout();
      if (layout.num_tokens() != run.prompt->num_tokens || walked.kept() != patches_of(*run.prompt, false))
        return "keep_ratio 1 left " + std::to_string(layout.num_tokens()) + " of " +
               std::to_string(run.prompt->num_tokens) + " tokens";
    }
    return std::string();
  });
}

std::string keeps_pinned(const ConformingPolicy& policy) {
  return answer([&] {
    // 2 words, 9 patches, 3 words, 9 patches, 3 words.
    const MadeUpPrompt prompt{.images = {{3, 3}, {3, 3}}, .pinned = {2, 10, 14, 21}};
    for (uint64_t seed = 1; seed < 9; ++seed) {
      Walk walked = walk(policy, kTwoThirds, make_up_run(policy.model, prompt, seed));
      const Tokens kept = walked.finish().kept();
      for (const int64_t t : prompt.pinned)
        if (!std::ranges::binary_search(kept, t)) return "the pinned token " + std::to_string(t) + " was dropped";
    }
    return std::string();
  });
}

std::string treats_images_alike(const ConformingPolicy& policy) {
  return answer([&] {
    const MadeUpPrompt prompt{.images = {{3, 3}, {3, 3}, {2, 4}}};
    constexpr int64_t kFirst = MadeUpPrompt::kSystemTokens, kLength = 9 + MadeUpPrompt::kTextTokens;
    for (uint64_t seed = 1; seed < 5; ++seed) {
      const MadeUpRun run = make_up_run(policy.model, prompt, seed);
      Tokens where(run.prompt->num_tokens);
      std::iota(where.begin(), where.end(), 0);
      for (int64_t t = kFirst; t < kFirst + kLength; ++t) std::swap(where[t], where[t + kLength]);
      Tokens expected = walk(policy, kThird, run).finish().kept();
      for (int64_t& t : expected) t = where[t];
      std::ranges::sort(expected);
      const Tokens kept = walk(policy, kThird, moved(run, where)).finish().kept();
      if (kept != expected)
        return "with two images in each other's place it kept " + text_of(kept) + ", expected " + text_of(expected);
    }
    return std::string();
  });
}

std::string works_without_images(const ConformingPolicy& policy) {
  return answer([&] {
    const MadeUpRun run = make_up_run(policy.model, {.images = {}}, 6);
    Walk walked = walk(policy, kHalf, run);
    const int64_t left = walked.finish().layout().num_tokens();
    return left == run.prompt->num_tokens ? "" : std::to_string(left) + " tokens are left of a prompt without images";
  });
}

std::string works_with_one_token(const ConformingPolicy& policy) {
  return works_with(policy, {.images = {{1, 1}}});
}

std::string works_with_sixteen_images(const ConformingPolicy& policy) {
  return works_with(policy, {.images = std::vector<GridSize>(16, {2, 3})});
}

std::string works_with_tiles(const ConformingPolicy& policy) {
  return works_with(policy, {.images = {{4, 4}, {4, 4}}, .has_tiles = true});
}

std::string works_with_equal_tokens(const ConformingPolicy& policy) {
  return answer([&] {
    for (const double value : {0.0, 1.0}) {
      MadeUpRun run = make_up_run(policy.model, {.images = {{4, 4}, {4, 4}}}, 7);
      for (auto& [name, array] : run.arrays) {
        if (name.starts_with("attention.")) {
          const at::Tensor seen = at::ones_like(array).tril();
          array = seen / seen.sum(-1, /*keepdim=*/true);
        } else {
          array = at::full_like(array, value);
        }
      }
      if (std::string wrong = check_walk(policy, kHalf, run); !wrong.empty()) return wrong;
    }
    return std::string();
  });
}

std::string keeps_to_its_scope(const ConformingPolicy& policy) {
  return answer([&] {
    const std::vector<MadeUpPrompt> prompts = {{.images = {{4, 4}, {2, 6}, {4, 2}}},
                                               {.images = {{4, 4}, {4, 4}}, .has_tiles = true}};
    for (const MadeUpPrompt& prompt : prompts)
      for (const Fraction ratio : {kHalf, kOne}) {
        const PolicyPtr made = policy.make(ratio);
        const MadeUpRun run = make_up_run(policy.model, prompt, 11);
        for (const Inside& inside : insides_of(*run.prompt)) {
          Walk walked(made, policy.model, run),
              changed(made, policy.model, redrawn(run, policy.model, prompt, 12, inside.is_outside));
          std::string wrong = compare_inside(walked, changed, inside);
          if (!wrong.empty()) return wrong;
        }
      }
    return std::string();
  });
}

std::string keeps_nested_sets(const ConformingPolicy& policy) {
  return answer([&] {
    for (const MadeUpPrompt& prompt : {MadeUpPrompt{.images = {{4, 4}, {2, 6}, {6, 2}}},
                                       MadeUpPrompt{.images = {{4, 4}, {4, 4}}, .has_tiles = true}})
      for (const Fraction ratio : {kTwoThirds, kHalf}) {
        Walk walked = walk(policy, ratio, make_up_run(policy.model, prompt, 13));
        do {
          if (std::string wrong = walked.check_nested(); !wrong.empty()) return wrong;
        } while (walked.step());
      }
    return std::string();
  });
}

std::string repeats_itself(const ConformingPolicy& policy) {
  return answer([&] {
    const MadeUpRun one = make_up_run(policy.model, {.images = {{4, 4}, {2, 3}}}, 8),
                    other = make_up_run(policy.model, {.images = {{3, 5}}}, 9);
    const PolicyPtr made = policy.make(kThird);
    const auto alone = Walk(made, policy.model, one).finish().trace();
    if (std::string wrong = compare(alone, Walk(made, policy.model, one).finish().trace()); !wrong.empty())
      return "asked again: " + wrong;
    Walk first(made, policy.model, one), second(made, policy.model, other);
    for (bool goes_on = true; goes_on;) {
      const bool stepped = first.step();
      goes_on = second.step() || stepped;
    }
    const std::string wrong = compare(alone, first.trace());
    return wrong.empty() ? wrong : "with another sequence beside it: " + wrong;
  });
}

std::optional<std::string> agrees_on_cuda(const ConformingPolicy& policy) {
  if (!at::hasCUDA()) return std::nullopt;
  return answer([&] {
    for (const MadeUpPrompt& prompt : usual_prompts()) {
      const auto on = [&](at::Device device) {
        return walk(policy, kThird, make_up_run(policy.model, prompt, 10, device)).finish().trace();
      };
      if (std::string wrong = compare(on(at::kCPU), on(at::kCUDA)); !wrong.empty()) return "CPU, then CUDA: " + wrong;
    }
    return std::string();
  });
}

}  // namespace conformance
}  // namespace espalier
