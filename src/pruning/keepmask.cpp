// SPDX-License-Identifier: Apache-2.0
// Kept sets from a file, applied where the file says. What the sets keep must be there when they are applied, so a set
// that names a token which an earlier one dropped is refused, and so is one without a pinned token or below a floor.
// Vectors that the file brings enter in its order: in front of what stands at a place of its crop, in place, or behind.
#include "espalier/policies/keepmask.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "espalier/error.h"
#include "pruning/built_in.h"

namespace espalier {

namespace {

using O = KeepmaskOptions;
using Sources = std::vector<int64_t>;

Sources sorted(Sources list) {
  std::ranges::sort(list);
  return list;
}

std::string who(const O& o) {
  return "keepmask: " + o.sets.file;
}

// Source indices of what may be listed.
Sources competing(const O& o, const PromptLayout& prompt) {
  Sources tokens;
  for (const Segment& s : prompt.segments)
    if (s.kind == Segment::Kind::kPatches || (s.kind == Segment::Kind::kRowBreak && o.row_breaks_compete))
      for (int64_t t = s.begin; t < s.end; ++t) tokens.push_back(t);
  return tokens;
}

std::vector<int64_t> per_image(const Sources& kept, const PromptLayout& prompt) {
  std::vector<int64_t> numbers(prompt.images.size(), 0);
  for (const Segment& s : prompt.segments)
    if (s.image >= 0)
      numbers[static_cast<size_t>(s.image)] +=
          std::ranges::lower_bound(kept, s.end) - std::ranges::lower_bound(kept, s.begin);
  return numbers;
}

const Segment& segment_of(const PromptLayout& prompt, int64_t source) {
  return *(std::ranges::upper_bound(prompt.segments, source, {}, &Segment::begin) - 1);
}

void check_heads(const O& o, const KeptPoint& set, const ModelFacts& model) {
  if (std::ssize(set.kept_per_head) != model.num_kv_heads)
    throw Error(who(o) + ": at " + to_string(set.point) + " it has " + std::to_string(set.kept_per_head.size()) +
                " lists for " + std::to_string(model.num_kv_heads) + " KV heads");
  for (const Sources& kept : set.kept_per_head)
    if (kept.size() != set.kept_per_head.front().size())
      throw Error(who(o) + ": at " + to_string(set.point) + " the KV heads keep different numbers of tokens");
}

void check_set(const O& o, const KeptPoint& set, const Sources& kept, const Sources& alive,
               const PromptLayout& prompt) {
  const std::string at = who(o) + ": at " + to_string(set.point) + ", ";
  const auto stranger =
      std::ranges::find_if_not(kept, [&](int64_t source) { return std::ranges::binary_search(alive, source); });
  if (stranger != kept.end()) {
    const bool is_row_break = std::ranges::any_of(
        prompt.segments, [&](const Segment& s) { return s.kind == Segment::Kind::kRowBreak && s.begin == *stranger; });
    throw Error(at + "token " + std::to_string(*stranger) +
                (is_row_break && !o.row_breaks_compete ? " is a row break (row_breaks=pool lets them be listed)"
                                                       : " is no image token of this request that is still there"));
  }
  const std::vector<int64_t> numbers = per_image(kept, prompt);
  for (size_t i = 0; i < numbers.size(); ++i) {
    const int64_t floor =
        std::min(o.common.min_per_image, prompt.num_image_tokens(static_cast<int>(i), o.row_breaks_compete));
    if (numbers[i] < floor)
      throw Error(at + "image " + std::to_string(i) + " keeps " + std::to_string(numbers[i]) +
                  " tokens, fewer than min_per_image=" + std::to_string(o.common.min_per_image));
  }
  if (std::ranges::all_of(prompt.pinned_per_image, [](int64_t number) { return number == 0; })) return;
  const at::Tensor pinned = prompt.pinned.nonzero().squeeze(1).cpu().contiguous();  // a request with pins waits
  for (int64_t i = 0; i < pinned.size(0); ++i)
    if (const int64_t t = pinned.const_data_ptr<int64_t>()[i]; !std::ranges::binary_search(kept, t))
      throw Error(at + "the pinned token " + std::to_string(t) + " is not kept");
}

// The merged set is one of this request; the sources that are alive behind it.
Sources check_merged(const O& o, const KeptPoint& set, const Sources& alive, const ModelFacts& model,
                     const PromptLayout& prompt) {
  Sources placed = sorted(set.sources);
  std::erase(placed, -1);
  check_set(o, set, placed, alive, prompt);
  const std::string at = who(o) + ": at " + to_string(set.point) + ", ";
  if (std::ranges::adjacent_find(placed) != placed.end()) throw Error(at + "two tokens stand at one place");
  for (const Sources& list : {set.kept, sorted(set.position_from)})
    for (const int64_t source : list)
      if (!std::ranges::binary_search(&list == &set.kept ? placed : alive, source))
        throw Error(at + "token " + std::to_string(source) +
                    " is not among those that merged_source or the set before names");
  const int64_t width = set.point.site == Site::kVisionOutput ? model.vision_hidden_size : model.hidden_size;
  if (width > 0 && set.vectors.size(1) != width)
    throw Error(at + "the merged vectors have " + std::to_string(set.vectors.size(1)) + " numbers, the model's " +
                std::to_string(width));
  return placed;
}

// The file's order is that of the sequence, so it tells where each vector enters: in front of all that stand at a
// place of their crop, in their order, or behind them. In the decoder an image is not cut into crops.
Verdict merged(const O& o, const KeptPoint& set, const TokenLayout& layout, const at::Tensor& kept) {
  const PromptLayout& prompt = *layout.prompt;
  const bool by_crop = set.point.site < Site::kBeforeLayer;
  const at::Tensor source = layout.source_index.index_select(0, layout.image_tokens).cpu().contiguous();
  std::map<int64_t, int64_t> ordinal_of;
  for (int64_t i = 0; i < source.size(0); ++i) ordinal_of[source.const_data_ptr<int64_t>()[i]] = i;
  struct Group {
    int64_t last = -1;  // ordinal of what was placed last
    bool is_behind = false;
  };
  std::map<std::pair<int, int>, Group> groups;  // image and crop
  enum Place { kFront, kWithin, kBehind };
  Sources rows[3], stands_at[3], from[3];
  for (size_t i = 0; i < set.sources.size(); ++i) {
    const int64_t s = set.sources[i];
    const Segment& segment = segment_of(prompt, set.position_from[i]);
    Group& group = groups[{segment.image, by_crop ? segment.crop : 0}];
    const bool is_kept = std::ranges::binary_search(set.kept, s);
    const int64_t ordinal = s < 0 ? -1 : ordinal_of.at(s);
    const bool is_within = ordinal > group.last && !group.is_behind;
    if (is_kept && !is_within)
      throw Error(who(o) + ": at " + to_string(set.point) + ", token " + std::to_string(s) +
                  " is kept out of the sequence's order");
    if (is_within) group.last = ordinal;
    const Place place = is_within ? kWithin : group.last < 0 ? kFront : kBehind;
    group.is_behind |= place == kBehind;
    if (is_kept) continue;
    rows[place].push_back(static_cast<int64_t>(i));
    stands_at[place].push_back(ordinal);
    from[place].push_back(ordinal_of.at(set.position_from[i]));
  }
  Verdict verdict{.kept = kept, .added = {}, .crop_by_crop = by_crop};
  const NewTokens::Where where[] = {NewTokens::Where::kFront, NewTokens::Where::kInPlace,
                                    by_crop ? NewTokens::Where::kBehind : NewTokens::Where::kBehindImage};
  const auto on_device = [&](const Sources& list) { return int64_tensor(list).to(kept.device()); };
  for (const Place place : {kFront, kWithin, kBehind})
    if (!rows[place].empty())
      verdict.added.push_back({where[place], set.vectors.index_select(0, int64_tensor(rows[place])).to(kept.device()),
                               on_device(stands_at[place]), on_device(from[place])});
  return verdict;
}

// Ordinals of the tokens with these sources, int64.
at::Tensor ordinals_of(const O& o, const ActPoint& point, const Sources& kept, const TokenLayout& layout) {
  const at::Tensor sources = layout.source_index.index_select(0, layout.image_tokens);
  at::Tensor is_kept = at::zeros({layout.prompt->num_tokens}, sources.options().dtype(at::kBool));
  is_kept.index_fill_(0, int64_tensor(kept).to(sources.device()), true);
  const at::Tensor found = indices_of(is_kept.index_select(0, sources.clamp_min(0)) & (sources >= 0));
  if (found.size(0) != std::ssize(kept))
    throw Error(who(o) + ": at " + to_string(point) + ", " + std::to_string(std::ssize(kept) - found.size(0)) +
                " of the tokens that it keeps have left before");
  return found;
}

Verdict apply(const O& o, const KeptPoint& set, const TokenLayout& layout) {
  if (set.vectors.defined()) return merged(o, set, layout, ordinals_of(o, set.point, set.kept, layout));
  if (set.point.site != Site::kCache) return {.kept = ordinals_of(o, set.point, set.kept, layout)};
  std::vector<at::Tensor> heads;
  for (const Sources& kept : set.kept_per_head) heads.push_back(ordinals_of(o, set.point, kept, layout));
  return {.kept = at::stack(heads)};
}

std::vector<Step> steps(const O& o, const ModelFacts& model, const PromptLayout& prompt) {
  Sources alive = competing(o, prompt);
  const KeptPoint* unnamed = nullptr;  // behind it there are tokens that no set can name
  const auto sets = std::make_shared<const O>(o);
  std::vector<Step> steps;
  for (const KeptPoint& set : sets->sets.points) {
    if (unnamed)
      throw Error(who(o) + ": at " + to_string(set.point) +
                  ", whether the merged tokens without a place that entered at " + to_string(unnamed->point) +
                  " stay cannot be told");
    Step step;
    step.at = set.point;
    step.decide = [sets, &set](const TokenLayout& layout, std::span<const at::Tensor>) {
      return apply(*sets, set, layout);
    };
    step.is_nested = false;
    step.budget.pool = Budget::Pool::kImage;
    if (set.vectors.defined()) {
      alive = check_merged(o, set, alive, model, prompt);
      step.budget.counts = per_image(sorted(set.position_from), prompt);
      step.always_acts = true;
      if (std::ranges::count(set.sources, -1) > 0) unnamed = &set;
    } else if (set.point.site == Site::kCache) {
      check_heads(o, set, model);
      for (const Sources& kept : set.kept_per_head) check_set(o, set, kept, alive, prompt);
      if (std::ranges::all_of(set.kept_per_head, [&](const Sources& kept) { return kept == alive; })) continue;
    } else {
      check_set(o, set, set.kept, alive, prompt);
      step.budget.counts = per_image(set.kept, prompt);
      if (set.kept == alive) continue;
      alive = set.kept;
    }
    steps.push_back(std::move(step));
  }
  return steps;
}

const Method<O>& method() {
  static const Method<O> method = {
      .name = "keepmask",
      .options = {{"file", "kept sets in the form of a replay result; needed",
                   [](O& o, std::string_view file, const ReadContext& context) {
                     o.sets = context.get_files().kept_sets(std::string(file));
                     return std::string();
                   },
                   [](const O& o) { return o.sets.file; }},
                  row_breaks(&O::row_breaks_compete,
                             "pool: the sets list row breaks too; follow: each stays with its row")},
      .steps = steps,
      .check = [](const O& o) {
        if (o.sets.file.empty()) throw Error("keepmask: file is needed");
      }};
  return method;
}

}  // namespace

PolicyPtr make_keepmask(const KeepmaskOptions& options) {
  return make(method(), options);
}

PolicyRow keepmask_row() {
  return row(method(), {.paper = "-",
                        .summary = "kept sets made elsewhere are applied",
                        .needs = "nothing",
                        .refusal = any_model,
                        .examples = {{"keepmask:file=kept.json"}}});
}

}  // namespace espalier
