// SPDX-License-Identifier: Apache-2.0
#include "layout/policy_walk.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>

#include <algorithm>
#include <string>

#include "espalier/error.h"
#include "layout/prompt_trace.h"

namespace espalier {

namespace {

std::string describe(const ActPoint& point) {
  std::string text(name_of(point.site));
  if (point.site >= Site::kBeforeLayer) text += " " + std::to_string(point.layer);
  return text;
}

// Sorts points along the data: before layer L, after its attention, its cache, before layer L + 1.
int rank(const ActPoint& p) {
  switch (p.site) {
    case Site::kVisionOutput:
      return 0;
    case Site::kProjectorOutput:
      return 1;
    case Site::kBeforeLayer:
      return 2 + 3 * p.layer;
    case Site::kAfterAttention:
      return 3 + 3 * p.layer;
    case Site::kCache:
      return 4 + 3 * p.layer;
  }
  return 0;
}

void check_points(const std::vector<ActPoint>& points, const ModelFacts& model, const std::string& who) {
  int previous = -1;
  for (const ActPoint& p : points) {
    if (p.site >= Site::kBeforeLayer && (p.layer < 0 || p.layer >= model.num_layers))
      throw Error(who + ": acts at " + describe(p) + ", but the model has layers 0 to " +
                  std::to_string(model.num_layers - 1));
    if (p.site == Site::kCache && model.sliding_window > 0)
      throw Error(who + ": acts at " + describe(p) + ", but a cache with a sliding window cannot be pruned");
    // Several at one point follow each other (pipelines), but a cache is cut once.
    if (rank(p) < previous || (rank(p) == previous && p.site == Site::kCache))
      throw Error(who + ": acts at " + describe(p) + " out of the data's order");
    previous = rank(p);
  }
}

struct SignalCheck {
  const ActPoint& point;
  const ModelFacts& model;
  int first_readable;
  std::string who;

  [[noreturn]] void fail(const std::string& what) const { throw Error(who + ": at " + describe(point) + ": " + what); }

  // Layers that have run when the point acts; before layer L, L itself can still be looked at ahead.
  void decoder_layer(int layer, bool may_look_ahead, const std::string& what) const {
    if (layer < 0 || layer >= model.num_layers)
      fail(what + " of layer " + std::to_string(layer) + ", but the model has layers 0 to " +
           std::to_string(model.num_layers - 1));
    int last = -1;
    if (point.site == Site::kBeforeLayer) last = may_look_ahead ? point.layer : point.layer - 1;
    if (point.site == Site::kAfterAttention || point.site == Site::kCache) last = point.layer;
    if (layer > last) fail(what + " of layer " + std::to_string(layer) + ", which has not run by then");
    if (layer < first_readable)
      fail(what + " of layer " + std::to_string(layer) +
           ", which ran before the policy's previous point (first readable: " + std::to_string(first_readable) + ")");
  }

  void vision_layer(int layer, const std::string& what) const {
    if (layer < 0 || layer >= model.vision_layers)
      fail(what + " of vision layer " + std::to_string(layer) + ", but the tower has layers 0 to " +
           std::to_string(model.vision_layers - 1));
    if (point.site > Site::kProjectorOutput) fail(what + " of the vision tower is only there up to projector_output");
    if (first_readable >= 0) fail(what + " of the vision tower can be read at a policy's first point only");
  }

  void operator()(const AttentionProbe& p) const {
    if (p.rows == AttentionProbe::Rows::kClass) {
      if (!model.has_class_token) fail("class attention, but the vision tower has no class token");
      if (p.heads == AttentionProbe::Heads::kMax) fail("class attention with the largest head is not computed");
      vision_layer(p.layer, "class attention");
      return;
    }
    if (p.heads == AttentionProbe::Heads::kJoint) fail("joint heads are for class attention only");
    if (!p.reduce_rows && p.groups.size() > 1) fail("rows of several groups cannot be kept apart");
    if ((p.rows == AttentionProbe::Rows::kGiven) == p.groups.empty()) fail("given rows and groups belong together");
    decoder_layer(p.layer, /*may_look_ahead=*/true, "attention");
  }

  void operator()(const AttentionGrowth& g) const {
    if (g.lower >= g.upper)
      fail("attention growth from layer " + std::to_string(g.lower) + " to " + std::to_string(g.upper));
    decoder_layer(g.lower, false, "attention growth");
    decoder_layer(g.upper, false, "attention growth");
    if (g.pool.defined() && point.site == Site::kCache) fail("a cosine term needs a state, and the cache has none");
  }

  void operator()(const Tap& t) const {
    switch (t.what) {
      case Tap::What::kHidden:
      case Tap::What::kFinalNorm:
        if (point.site == Site::kVisionOutput) fail("hidden states, which do not exist before the projector");
        if (point.site == Site::kCache) fail("hidden states, but a cache has none");
        return;
      case Tap::What::kKey:
        decoder_layer(t.layer, false, "keys");
        return;
      case Tap::What::kVisionKey:
        vision_layer(t.layer, "keys");
        return;
      case Tap::What::kVisionClass:
        if (!model.has_class_token) fail("class rows, but the vision tower has no class token");
        [[fallthrough]];
      case Tap::What::kVisionOutput:
        vision_layer(model.vision_feature_layer, "the output");
        return;
      case Tap::What::kClipImage:
      case Tap::What::kClipText:
        if (!model.has_text_tower) fail("CLIP embeddings, but the checkpoint has no text tower");
        return;
    }
  }
};

std::vector<int64_t> to_host(const at::Tensor& t) {
  const at::Tensor host = t.cpu().contiguous();
  return {host.const_data_ptr<int64_t>(), host.const_data_ptr<int64_t>() + host.numel()};
}

std::vector<float> to_floats(const at::Tensor& t) {
  const at::Tensor host = t.to(at::kFloat).cpu().contiguous();
  return {host.const_data_ptr<float>(), host.const_data_ptr<float>() + host.numel()};
}

// Of the image tokens that were there, those that the point keeps nowhere; ascending.
std::vector<int64_t> dropped_by(std::vector<int64_t> before, const PointTrace& point) {
  std::erase_if(before, [&](int64_t source) {
    const auto is_in = [&](const std::vector<int64_t>& kept) { return std::ranges::binary_search(kept, source); };
    return source < 0 || is_in(point.kept) || std::ranges::any_of(point.kept_per_head, is_in);
  });
  std::ranges::sort(before);
  return before;
}

}  // namespace

std::string_view name_of(Site site) {
  switch (site) {
    case Site::kVisionOutput:
      return "vision_output";
    case Site::kProjectorOutput:
      return "projector_output";
    case Site::kBeforeLayer:
      return "before_layer";
    case Site::kAfterAttention:
      return "after_attention";
    case Site::kCache:
      return "cache";
  }
  return "";
}

at::Tensor PruningPolicy::soft_mask(const ActPoint&, const TokenLayout&, std::span<const at::Tensor>, State*) const {
  throw Error(spec() + ": this policy cannot be trained");
}

void check_signal(const Signal& signal, const ActPoint& point, const ModelFacts& model, int first_readable_layer,
                  std::string_view policy) {
  std::visit(SignalCheck{point, model, first_readable_layer, std::string(policy)}, signal);
}

PolicyWalk::PolicyWalk(PolicyPtr policy, const ModelFacts& model, std::shared_ptr<const PromptLayout> prompt)
    : policy_(std::move(policy)),
      model_(model),
      positions_(policy_->common().positions),
      row_breaks_compete_(policy_->row_breaks_compete()),
      layout_(full_layout(prompt, row_breaks_compete_)) {
  const int64_t image_tokens = prompt->num_image_tokens(row_breaks_compete_);
  if (image_tokens > 0 && image_tokens >= policy_->common().min_tokens) points_ = policy_->points(model, *prompt);
  check_points(points_, model, policy_->spec());
  if (positions_ == Positions::kCompact && prompt->position_id.dim() != 1)
    throw Error(policy_->spec() + ": positions=compact is not possible with three-part position ids");
  state_ = policy_->begin_sequence(model, *prompt);
  ask_needs();
}

const ActPoint* PolicyWalk::next() const {
  return next_ < points_.size() ? &points_[next_] : nullptr;
}

bool PolicyWalk::is_next(Site site, int layer) const {
  const ActPoint* point = next();
  return point && point->site == site && (site < Site::kBeforeLayer || point->layer == layer);
}

void PolicyWalk::ask_needs() {
  needs_.clear();
  if (!next()) return;
  needs_ = policy_->needs(*next(), layout_, state_.get());
  for (const Signal& signal : needs_) check_signal(signal, *next(), model_, first_readable_layer_, policy_->spec());
}

PolicyWalk::Outcome PolicyWalk::act(std::span<const at::Tensor> signals) {
  const ActPoint point = points_[next_];
  const Verdict verdict = policy_->decide(point, layout_, signals, state_.get());
  Record record{.point = point,
                .sources = layout_.source_index.index_select(0, layout_.image_tokens),
                .kept_sources = {},
                .kept_per_head = {},
                .scores = verdict.scores,
                .judged = verdict.judged,
                .notes = verdict.notes,
                .merged = {},
                .after = {}};
  Outcome outcome;
  if (point.site == Site::kCache) {
    if (!verdict.added.empty()) throw Error(policy_->spec() + ": new tokens cannot enter at " + describe(point));
    if (!verdict.kept.defined() || verdict.kept.scalar_type() != at::kLong || verdict.kept.dim() < 1 ||
        verdict.kept.dim() > 2)
      throw Error(policy_->spec() + ": at " + describe(point) + ": kept must be int64 [k] or [KV heads, k]");
    outcome.kept_per_head = verdict.kept.dim() == 2 ? verdict.kept : verdict.kept.expand({model_.num_kv_heads, -1});
    if (outcome.kept_per_head.size(0) != model_.num_kv_heads)
      throw Error(policy_->spec() + ": at " + describe(point) + ": kept has " +
                  std::to_string(outcome.kept_per_head.size(0)) + " rows for " + std::to_string(model_.num_kv_heads) +
                  " KV heads");
    for (const at::Tensor& of_head : outcome.kept_per_head.unbind())
      check_kept(of_head, record.sources.size(0), policy_->spec());
    record.kept_sources =
        record.sources.index_select(0, outcome.kept_per_head.flatten()).view(outcome.kept_per_head.sizes());
  } else {
    outcome.applied = apply_verdict(layout_, verdict, positions_, row_breaks_compete_, policy_->spec());
    const TokenLayout before = std::exchange(layout_, outcome.applied.layout);
    // Tokens that stay as themselves; one that stays with a new vector in its place is reported as merged.
    record.kept_sources = record.sources.index_select(0, verdict.kept);
    if (outcome.applied.has_new_tokens) {
      const auto of_image_tokens = [&](const at::Tensor& t) { return t.index_select(0, layout_.image_tokens); };
      record.merged = Merged{of_image_tokens(outcome.applied.index), outcome.applied.new_vectors,
                             of_image_tokens(layout_.source_index),
                             before.source_index.index_select(0, of_image_tokens(outcome.applied.facts_from)), before};
    }
  }
  record.kept_per_head = outcome.kept_per_head;
  record.after = layout_;
  records_.push_back(std::move(record));
  first_readable_layer_ = point.site < Site::kBeforeLayer    ? 0
                          : point.site == Site::kBeforeLayer ? point.layer
                                                             : point.layer + 1;
  ++next_;
  ask_needs();
  return outcome;
}

PointTrace PolicyWalk::trace_of(const Record& r, bool in_full) {
  PointTrace t;
  t.site = name_of(r.point.site);
  t.layer = r.point.site >= Site::kBeforeLayer ? r.point.layer : -1;
  if (r.point.site == Site::kCache) {
    for (int64_t g = 0; g < r.kept_sources.size(0); ++g) t.kept_per_head.push_back(to_host(r.kept_sources[g]));
  } else {
    t.kept = to_host(r.kept_sources);
    std::erase_if(t.kept, [](int64_t source) { return source < 0; });  // merged tokens without a place
    std::ranges::sort(t.kept);  // where images went crop by crop, the sequence is not in the sources' order
  }
  if (!in_full) return t;
  t.dropped = dropped_by(to_host(r.sources), t);
  t.source = to_host(r.after.source_index);
  t.position_id = position_ids(r.after.position_id);
  t.tokens_per_image.resize(r.after.prompt->images.size());
  at::Tensor images = r.after.image.index_select(0, r.after.image_tokens);
  if (r.kept_per_head.defined()) images = images.index_select(0, r.kept_per_head[0]);
  for (const int64_t image : to_host(images)) ++t.tokens_per_image[static_cast<size_t>(image)];
  if (r.scores.defined()) {
    const at::Tensor judged = r.judged.defined() ? r.judged.nonzero().squeeze(1) : at::Tensor();
    const auto of_judged = [&](const at::Tensor& values) {
      return judged.defined() ? values.index_select(0, judged) : values;
    };
    t.candidates = to_host(of_judged(r.sources));
    t.scores = to_floats(of_judged(r.scores));
  }
  for (const Note& note : r.notes) t.notes.emplace_back(note.name, to_floats(note.values));
  return t;
}

std::vector<PointTrace> PolicyWalk::trace(bool in_full) const {
  std::vector<PointTrace> points;
  for (const Record& record : records_) points.push_back(trace_of(record, in_full));
  return points;
}

PointTrace PolicyWalk::last_point() const {
  return trace_of(records_.back(), /*in_full=*/true);
}

// What the last point that shortened the sequence left as it was: a merged token is none that survived.
std::vector<int64_t> PolicyWalk::kept_sources() const {
  const auto last = std::ranges::find_if(records_.rbegin(), records_.rend(),
                                         [](const Record& r) { return r.point.site != Site::kCache; });
  std::vector<int64_t> kept = to_host(
      last != records_.rend() ? last->kept_sources : layout_.source_index.index_select(0, layout_.image_tokens));
  std::erase_if(kept, [](int64_t source) { return source < 0; });
  std::ranges::sort(kept);
  return kept;
}

}  // namespace espalier
