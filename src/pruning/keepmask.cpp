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
#include <string>
#include <utility>

#include "espalier/error.h"
#include "pruning/built_in.h"
#include "pruning/selection.h"

namespace espalier {

namespace {

using Sources = std::vector<int64_t>;

std::string describe(const ActPoint& point) {
  std::string text(name_of(point.site));
  if (point.site >= Site::kBeforeLayer) text += " " + std::to_string(point.layer);
  return text;
}

class Keepmask final : public PlannedPolicy {
 public:
  explicit Keepmask(const KeepmaskOptions& options)
      : PlannedPolicy("keepmask", options.common, options.row_breaks_compete), options_(options) {}

  std::string spec() const override {
    return SpecWriter("keepmask")
        .add("file", options_.sets.file)
        .row_breaks(options_.row_breaks_compete, KeepmaskOptions().row_breaks_compete)
        .common(common())
        .text();
  }

  std::vector<PlannedPoint> plan(const ModelFacts& model, const PromptLayout& prompt) const override {
    Sources alive = competing(prompt);
    const KeptPoint* unnamed = nullptr;  // behind it there are tokens that no set can name
    std::vector<PlannedPoint> points;
    for (const KeptPoint& set : options_.sets.points) {
      PlannedPoint& planned = points.emplace_back();
      planned.point = set.point;
      if (unnamed)
        throw Error(who() + ": at " + describe(set.point) +
                    ", whether the merged tokens without a place that entered at " + describe(unnamed->point) +
                    " stay cannot be told");
      if (set.vectors.defined()) {
        alive = check_merged(set, alive, model, prompt);
        planned.tokens_left = std::ssize(set.sources);
        planned.tokens_left_per_image = per_image(sorted(set.position_from), prompt);
        planned.may_drop = true;
        if (std::ranges::count(set.sources, -1) > 0) unnamed = &set;
        continue;
      }
      if (set.point.site == Site::kCache) {
        check_heads(set, model);
        for (const Sources& kept : set.kept_per_head) check_set(set, kept, alive, prompt);
        planned.may_drop = std::ranges::any_of(set.kept_per_head, [&](const Sources& k) { return k != alive; });
        continue;
      }
      check_set(set, set.kept, alive, prompt);
      planned.tokens_left = std::ssize(set.kept);
      planned.tokens_left_per_image = per_image(set.kept, prompt);
      planned.may_drop = set.kept != alive;
      alive = set.kept;
    }
    return points;
  }

  std::vector<Signal> needs(const ActPoint&, const TokenLayout&, const State*) const override { return {}; }

  Verdict decide(const ActPoint& point, const TokenLayout& layout, std::span<const at::Tensor>, State*) const override {
    const auto set = std::ranges::find(options_.sets.points, point, &KeptPoint::point);
    const at::Tensor sources = layout.source_index.index_select(0, layout.image_tokens);
    const auto ordinals = [&](const Sources& kept) {
      at::Tensor is_kept = at::zeros({layout.prompt->num_tokens}, sources.options().dtype(at::kBool));
      is_kept.index_fill_(0, int64_tensor(kept).to(sources.device()), true);
      const at::Tensor mask = is_kept.index_select(0, sources.clamp_min(0)) & (sources >= 0);
      const at::Tensor found = indices_of(mask);
      if (found.size(0) != std::ssize(kept))
        throw Error(who() + ": at " + describe(point) + ", " + std::to_string(std::ssize(kept) - found.size(0)) +
                    " of the tokens that it keeps have left before");
      return found;
    };
    if (set->vectors.defined()) return merged(*set, layout, ordinals(set->kept));
    if (point.site != Site::kCache) return {.kept = ordinals(set->kept)};
    std::vector<at::Tensor> heads;
    for (const Sources& kept : set->kept_per_head) heads.push_back(ordinals(kept));
    return {.kept = at::stack(heads)};
  }

 private:
  static Sources sorted(Sources list) {
    std::ranges::sort(list);
    return list;
  }

  // The merged set is one of this request; the sources that are alive behind it.
  Sources check_merged(const KeptPoint& set, const Sources& alive, const ModelFacts& model,
                       const PromptLayout& prompt) const {
    Sources placed = sorted(set.sources);
    std::erase(placed, -1);
    check_set(set, placed, alive, prompt);
    const std::string at = who() + ": at " + describe(set.point) + ", ";
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
  Verdict merged(const KeptPoint& set, const TokenLayout& layout, const at::Tensor& kept) const {
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
        throw Error(who() + ": at " + describe(set.point) + ", token " + std::to_string(s) +
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

  static const Segment& segment_of(const PromptLayout& prompt, int64_t source) {
    return *(std::ranges::upper_bound(prompt.segments, source, {}, &Segment::begin) - 1);
  }

  std::string who() const { return "keepmask: " + options_.sets.file; }

  // Source indices of what may be listed.
  Sources competing(const PromptLayout& prompt) const {
    Sources tokens;
    for (const Segment& s : prompt.segments)
      if (s.kind == Segment::Kind::kPatches || (s.kind == Segment::Kind::kRowBreak && row_breaks_compete()))
        for (int64_t t = s.begin; t < s.end; ++t) tokens.push_back(t);
    return tokens;
  }

  static std::vector<int64_t> per_image(const Sources& kept, const PromptLayout& prompt) {
    std::vector<int64_t> numbers(prompt.images.size(), 0);
    for (const Segment& s : prompt.segments)
      if (s.image >= 0)
        numbers[static_cast<size_t>(s.image)] +=
            std::ranges::lower_bound(kept, s.end) - std::ranges::lower_bound(kept, s.begin);
    return numbers;
  }

  void check_heads(const KeptPoint& set, const ModelFacts& model) const {
    if (std::ssize(set.kept_per_head) != model.num_kv_heads)
      throw Error(who() + ": at " + describe(set.point) + " it has " + std::to_string(set.kept_per_head.size()) +
                  " lists for " + std::to_string(model.num_kv_heads) + " KV heads");
    for (const Sources& kept : set.kept_per_head)
      if (kept.size() != set.kept_per_head.front().size())
        throw Error(who() + ": at " + describe(set.point) + " the KV heads keep different numbers of tokens");
  }

  void check_set(const KeptPoint& set, const Sources& kept, const Sources& alive, const PromptLayout& prompt) const {
    const std::string at = who() + ": at " + describe(set.point) + ", ";
    const auto stranger =
        std::ranges::find_if_not(kept, [&](int64_t source) { return std::ranges::binary_search(alive, source); });
    if (stranger != kept.end()) {
      const bool is_row_break = std::ranges::any_of(prompt.segments, [&](const Segment& s) {
        return s.kind == Segment::Kind::kRowBreak && s.begin == *stranger;
      });
      throw Error(at + "token " + std::to_string(*stranger) +
                  (is_row_break && !row_breaks_compete() ? " is a row break (row_breaks=pool lets them be listed)"
                                                         : " is no image token of this request that is still there"));
    }
    const std::vector<int64_t> numbers = per_image(kept, prompt);
    for (size_t i = 0; i < numbers.size(); ++i) {
      const int64_t floor = std::min(common().min_per_image, num_image_tokens(prompt, static_cast<int>(i)));
      if (numbers[i] < floor)
        throw Error(at + "image " + std::to_string(i) + " keeps " + std::to_string(numbers[i]) +
                    " tokens, fewer than min_per_image=" + std::to_string(common().min_per_image));
    }
    if (std::ranges::all_of(prompt.pinned_per_image, [](int64_t number) { return number == 0; })) return;
    const at::Tensor pinned = prompt.pinned.nonzero().squeeze(1).cpu().contiguous();  // a request with pins waits
    for (int64_t i = 0; i < pinned.size(0); ++i)
      if (const int64_t t = pinned.const_data_ptr<int64_t>()[i]; !std::ranges::binary_search(kept, t))
        throw Error(at + "the pinned token " + std::to_string(t) + " is not kept");
  }

  KeepmaskOptions options_;
};

}  // namespace

PolicyPtr make_keepmask(const KeepmaskOptions& options) {
  return std::make_shared<Keepmask>(options);
}

PlannedPolicyPtr keepmask_from(const OptionReader& reader) {
  const auto file = reader.text("file");
  if (!file) throw Error("keepmask: file is needed");
  KeepmaskOptions options;
  options.sets = reader.files().kept_sets(std::string(*file));
  options.row_breaks_compete = reader.row_breaks_compete(options.row_breaks_compete);
  options.common = reader.common();
  return std::make_shared<Keepmask>(options);
}

}  // namespace espalier
