// SPDX-License-Identifier: Apache-2.0
#include "layout/walk_record.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <string>

#include "layout/prompt_trace.h"

namespace espalier {

namespace {

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

// The tokens of a record as if something had been merged: all of them stayed.
MergedTokens unmerged(const WalkRecord& r) {
  const at::Tensor tokens = r.before.image_tokens.index_select(0, r.kept);
  const at::Tensor source = r.before.source_index.index_select(0, tokens);
  return {tokens, {}, source, source, r.before};
}

// The new vectors that are still named, in the order of their names.
MergedTokens front_of(const MergedTokens& merged, const TokenLayout& before, int64_t num_after) {
  const int64_t n = merged.before.num_tokens();
  MergedTokens f;
  f.before = before;
  f.source = merged.source.slice(0, 0, num_after);
  f.position_from = merged.position_from.slice(0, 0, num_after);
  const at::Tensor index = merged.index.slice(0, 0, num_after), is_new = index >= n;
  f.vectors = merged.vectors.index_select(0, index.masked_select(is_new) - n);
  f.index = at::where(is_new, before.num_tokens() - 1 + is_new.to(at::kLong).cumsum(0), index);
  return f;
}

MergedTokens joined(const MergedTokens& front, const MergedTokens& back) {
  const int64_t n = front.before.num_tokens(), all = n + back.before.num_tokens();
  const int64_t vectors = front.vectors.defined() ? front.vectors.size(0) : 0;
  MergedTokens both;
  both.before = joined(front.before, back.before);
  both.index = at::cat({at::where(front.index >= n, front.index - n + all, front.index),
                        at::where(back.index >= back.before.num_tokens(), back.index + n + vectors, back.index + n)});
  both.vectors = !front.vectors.defined()  ? back.vectors
                 : !back.vectors.defined() ? front.vectors
                                           : at::cat({front.vectors, back.vectors});
  both.source = at::cat({front.source, back.source});
  both.position_from = at::cat({front.position_from, back.position_from});
  return both;
}

// A fact of each image token, where at least one of the two has it.
at::Tensor both_facts(const WalkRecord& front, const WalkRecord& back, at::Tensor WalkRecord::*fact,
                      const at::Tensor& missing_in_front, const at::Tensor& missing_in_back) {
  if (!(front.*fact).defined() && !(back.*fact).defined()) return {};
  return at::cat({(front.*fact).defined() ? front.*fact : missing_in_front.to((back.*fact).scalar_type()),
                  (back.*fact).defined() ? back.*fact : missing_in_back.to((front.*fact).scalar_type())});
}

}  // namespace

at::Tensor WalkRecord::sources() const {
  return before.source_index.index_select(0, before.image_tokens);
}

at::Tensor WalkRecord::kept_sources() const {
  return sources().index_select(0, kept.flatten()).view(kept.sizes());
}

WalkRecord front_of(const WalkRecord& record, int example) {
  WalkRecord f;
  f.point = record.point;
  f.before = front_of(record.before, example);
  f.after = front_of(record.after, example);
  const int64_t m = f.before.num_image_tokens();
  f.kept = record.kept.masked_select(record.kept < m);
  if (record.scores.defined()) f.scores = record.scores.slice(0, 0, m);
  if (record.judged.defined()) f.judged = record.judged.slice(0, 0, m);
  f.notes = record.notes;
  if (record.merged) f.merged = front_of(*record.merged, f.before, f.after.num_image_tokens());
  return f;
}

WalkRecord joined(const WalkRecord& front, const WalkRecord& back) {
  WalkRecord both;
  both.point = back.point;
  both.before = joined(front.before, back.before);
  both.after = joined(front.after, back.after);
  const int64_t m = front.before.num_image_tokens();
  both.kept = at::cat({front.kept, back.kept + m});
  const auto bools = back.kept.options().dtype(at::kBool), floats = back.kept.options().dtype(at::kFloat);
  const int64_t back_m = back.before.num_image_tokens();
  both.scores = both_facts(front, back, &WalkRecord::scores, at::zeros({m}, floats), at::zeros({back_m}, floats));
  both.judged = both_facts(front, back, &WalkRecord::judged, at::ones({m}, bools), at::ones({back_m}, bools));
  both.notes = front.notes;
  for (const Note& note : back.notes) {
    const auto same = std::ranges::find(both.notes, note.name, &Note::name);
    if (same == both.notes.end())
      both.notes.push_back(note);
    else
      same->values = at::cat({same->values, note.values});
  }
  if (front.merged || back.merged)
    both.merged = joined(front.merged ? *front.merged : unmerged(front), back.merged ? *back.merged : unmerged(back));
  return both;
}

PointTrace trace_of(const WalkRecord& r, bool in_full) {
  PointTrace t;
  t.site = name_of(r.point.site);
  t.layer = r.point.site >= Site::kBeforeLayer ? r.point.layer : -1;
  t.generated = r.generated;
  const at::Tensor kept = r.kept_sources();
  if (r.point.site == Site::kCache) {
    for (int64_t g = 0; g < kept.size(0); ++g) t.kept_per_head.push_back(to_host(kept[g]));
  } else {
    t.kept = to_host(kept);
    std::erase_if(t.kept, [](int64_t source) { return source < 0; });  // merged tokens without a place
    std::ranges::sort(t.kept);  // where images went crop by crop, the sequence is not in the sources' order
  }
  if (!in_full) return t;
  const at::Tensor sources = r.sources();
  t.dropped = dropped_by(to_host(sources), t);
  t.source = to_host(r.after.source_index);
  t.position_id = position_ids(r.after.position_id);
  t.tokens_per_image.resize(r.after.prompt->images.size());
  at::Tensor images = r.after.image.index_select(0, r.after.image_tokens);
  if (r.point.site == Site::kCache) images = images.index_select(0, r.kept[0]);
  for (const int64_t image : to_host(images)) ++t.tokens_per_image[static_cast<size_t>(image)];
  if (r.scores.defined()) {
    const at::Tensor judged = r.judged.defined() ? r.judged.nonzero().squeeze(1) : at::Tensor();
    const auto of_judged = [&](const at::Tensor& values) {
      return judged.defined() ? values.index_select(0, judged) : values;
    };
    t.candidates = to_host(of_judged(sources));
    t.scores = to_floats(of_judged(r.scores));
  }
  for (const Note& note : r.notes) t.notes.emplace_back(note.name, to_floats(note.values));
  return t;
}

}  // namespace espalier
