// SPDX-License-Identifier: Apache-2.0
#include "layout/cut.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <string>
#include <utility>

#include "espalier/error.h"

namespace espalier {

namespace {

using Kind = Segment::Kind;

at::Tensor to_tensor(const std::vector<int64_t>& values, at::Device device) {
  return int64_tensor(values).to(device);
}

void check_segment(const PromptLayout& layout, const Segment& s, int64_t expected_begin) {
  const auto where = "layout: segment [" + std::to_string(s.begin) + ", " + std::to_string(s.end) + ")";
  if (s.begin != expected_begin || s.end < s.begin)
    throw Error(where + " does not begin where the one before ends (" + std::to_string(expected_begin) + ")");
  if (s.kind == Kind::kText) return;
  if (s.image < 0 || s.image >= static_cast<int>(layout.images.size()))
    throw Error(where + " names image " + std::to_string(s.image) + " of " + std::to_string(layout.images.size()));
  if (s.kind == Kind::kRowBreak) {
    if (s.end - s.begin != 1) throw Error(where + ": a row break is one token");
    return;
  }
  const GridSize crop = layout.images[s.image].grid;
  if (s.grid.rows * s.grid.cols != s.end - s.begin)
    throw Error(where + " holds " + std::to_string(s.end - s.begin) + " patches, but its grid is " +
                std::to_string(s.grid.rows) + " x " + std::to_string(s.grid.cols));
  if (s.origin.rows < 0 || s.origin.cols < 0 || s.origin.rows + s.grid.rows > crop.rows ||
      s.origin.cols + s.grid.cols > crop.cols)
    throw Error(where + " reaches out of its crop of " + std::to_string(crop.rows) + " x " + std::to_string(crop.cols));
}

bool is_image_token(Kind kind, bool with_row_breaks) {
  return kind == Kind::kPatches || (with_row_breaks && kind == Kind::kRowBreak);
}

int64_t as_int(Kind kind) {
  return static_cast<int64_t>(kind);
}

// Indices of the tokens that compete.
at::Tensor competing(const at::Tensor& kind, bool with_row_breaks) {
  at::Tensor mask = kind == as_int(Kind::kPatches);
  if (with_row_breaks) mask = mask | (kind == as_int(Kind::kRowBreak));
  return mask.nonzero().squeeze(1);
}

// Row breaks that lost every patch of their row; a row reaches back to the previous row break, the first to the end of
// the full view.
std::vector<bool> orphaned_row_breaks(const TokenLayout& layout, const std::vector<bool>& stays) {
  const at::Tensor kind = layout.kind.cpu(), crop = layout.crop.cpu(), image = layout.image.cpu();
  const auto kinds = kind.accessor<int64_t, 1>(), crops = crop.accessor<int64_t, 1>(),
             images = image.accessor<int64_t, 1>();
  std::vector<bool> orphaned(stays.size(), false);
  bool row_has_patch = false;
  int64_t row_image = -1;
  for (size_t i = 0; i < stays.size(); ++i) {
    if (images[i] != row_image) row_has_patch = false;
    row_image = images[i];
    if (kinds[i] == as_int(Kind::kRowBreak)) {
      orphaned[i] = !row_has_patch;
      row_has_patch = false;
    } else if (kinds[i] == as_int(Kind::kPatches) && crops[i] > 0 && stays[i]) {
      row_has_patch = true;
    }
  }
  return orphaned;
}

// Ascending indices of the tokens that stay.
at::Tensor surviving(const TokenLayout& layout, const at::Tensor& kept, bool crop_by_crop) {
  const int64_t n = layout.num_tokens();
  const auto longs = layout.image_tokens.options();
  bool has_row_breaks = false;
  for (const Segment& s : layout.prompt->segments) has_row_breaks |= s.kind == Kind::kRowBreak;
  const bool has_following_breaks = has_row_breaks && !layout.row_breaks_compete;
  at::Tensor mask = at::ones({n}, longs.dtype(at::kBool));
  mask.index_fill_(0, layout.image_tokens, false);
  mask.index_fill_(0, layout.image_tokens.index_select(0, kept), true);
  if (crop_by_crop && has_row_breaks) return (mask & (layout.kind != as_int(Kind::kRowBreak))).nonzero().squeeze(1);
  if (has_following_breaks) {
    const at::Tensor host = mask.cpu();
    const bool* begin = host.const_data_ptr<bool>();
    const std::vector<bool> orphaned = orphaned_row_breaks(layout, std::vector<bool>(begin, begin + n));
    std::vector<int64_t> left;
    for (int64_t i = 0; i < n; ++i)
      if (begin[i] && !orphaned[i]) left.push_back(i);
    return to_tensor(left, layout.image_tokens.device());
  }
  // The number is known, so a device need not be asked for it: dropped tokens sort behind the n' that stay.
  const int64_t num_left = n - layout.num_image_tokens() + kept.size(0);
  if (mask.device().is_cpu()) return mask.nonzero().squeeze(1);
  const at::Tensor rank = at::arange(n, longs) + mask.logical_not().to(at::kLong) * n;
  return std::get<0>(rank.sort()).slice(0, 0, num_left);
}

at::Tensor select_positions(const at::Tensor& position_id, const at::Tensor& index) {
  return position_id.index_select(-1, index);
}

// New tokens with their places among the survivors: sort keys 3·place + 1 for survivors, one less or more for what
// enters in front or behind.
struct Entering {
  at::Tensor vectors, stands_at, position_from, sort_key;
};

// Place of each token in the order of the new sequence, were all of them there: its index, or where the tokens of an
// image go crop by crop, its place then. int64 [n]. Images must stand behind each other.
at::Tensor places_of(const TokenLayout& layout, bool crop_by_crop) {
  const int64_t n = layout.num_tokens();
  const at::Tensor index = at::arange(n, layout.image_tokens.options());
  if (!crop_by_crop) return index;
  // Tokens of an image sort by crop within the image's places; row breaks, of crop -1, leave anyway.
  const at::Tensor image = layout.image.cpu(), crop = layout.crop.cpu();
  const auto images = image.accessor<int64_t, 1>(), crops = crop.accessor<int64_t, 1>();
  std::vector<int64_t> order(static_cast<size_t>(n)), place(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  for (int64_t first = 0, last = 0; first < n; first = last) {
    while (last < n && images[last] == images[first]) ++last;
    if (images[first] >= 0)
      std::stable_sort(order.begin() + first, order.begin() + last,
                       [&](int64_t a, int64_t b) { return crops[a] < crops[b]; });
  }
  for (int64_t i = 0; i < n; ++i) place[static_cast<size_t>(order[static_cast<size_t>(i)])] = i;
  return to_tensor(place, index.device());
}

enum class Edge : uint8_t { kFirstOfCrop, kLastOfCrop, kLastOfImage };

// Place of the first or last token of the crop or image to which each of `tokens` belongs. A row break belongs to no
// crop: it is its own edge.
at::Tensor edge_places(const TokenLayout& layout, const at::Tensor& places, const at::Tensor& tokens, Edge which) {
  const at::Tensor image = layout.image.cpu(), crop = layout.crop.cpu(), of = tokens.cpu(), host = places.cpu();
  const auto images = image.accessor<int64_t, 1>(), crops = crop.accessor<int64_t, 1>(),
             place = host.accessor<int64_t, 1>();
  using Group = std::pair<int64_t, int64_t>;  // image and crop
  const auto group_of = [&](int64_t t) { return Group{images[t], which == Edge::kLastOfImage ? 0 : crops[t]}; };
  std::map<Group, int64_t> edges;
  for (int64_t t = 0; t < layout.num_tokens(); ++t) {
    const auto [edge, is_first] = edges.try_emplace(group_of(t), place[t]);
    if (!is_first)
      edge->second = which == Edge::kFirstOfCrop ? std::min(edge->second, place[t]) : std::max(edge->second, place[t]);
  }
  std::vector<int64_t> found;
  for (int64_t i = 0; i < of.size(0); ++i) {
    const int64_t token = of.const_data_ptr<int64_t>()[i];
    const bool is_alone = which != Edge::kLastOfImage && crops[token] < 0;
    found.push_back(is_alone ? place[token] : edges.at(group_of(token)));
  }
  return to_tensor(found, tokens.device());
}

Entering entering_tokens(const TokenLayout& layout, const at::Tensor& places, const std::vector<NewTokens>& added,
                         std::string_view who) {
  std::vector<at::Tensor> vectors, stands_at, position_from, keys;
  for (const NewTokens& group : added) {
    const int64_t r = group.vectors.size(0);
    if (group.stands_at.size(0) != r || group.position_from.size(0) != r)
      throw Error(std::string(who) + ": " + std::to_string(r) + " new vectors with " +
                  std::to_string(group.stands_at.size(0)) + " places and " +
                  std::to_string(group.position_from.size(0)) + " position sources");
    const at::Tensor from = layout.image_tokens.index_select(0, group.position_from);
    const at::Tensor place = layout.image_tokens.index_select(0, group.stands_at.clamp_min(0));
    at::Tensor key;  // three slots a token: in front of it, itself, behind it
    switch (group.where) {
      case NewTokens::Where::kInPlace:
        if ((group.stands_at < 0).any().item<bool>())
          throw Error(std::string(who) + ": a new token in place must stand at a token");
        key = places.index_select(0, place) * 3 + 1;
        break;
      case NewTokens::Where::kFront:
        key = edge_places(layout, places, from, Edge::kFirstOfCrop) * 3;
        break;
      case NewTokens::Where::kBehind:
        key = edge_places(layout, places, from, Edge::kLastOfCrop) * 3 + 2;
        break;
      case NewTokens::Where::kBehindImage:
        key = edge_places(layout, places, from, Edge::kLastOfImage) * 3 + 2;
        break;
    }
    const at::Tensor source = layout.source_index.index_select(0, place);
    vectors.push_back(group.vectors);
    stands_at.push_back(source.masked_fill(group.stands_at < 0, -1));
    position_from.push_back(from);
    keys.push_back(key);
  }
  return {at::cat(vectors), at::cat(stands_at), at::cat(position_from), at::cat(keys)};
}

}  // namespace

void check_kept(const at::Tensor& kept, int64_t m, std::string_view who) {
  const std::string policy(who);
  if (!kept.defined() || kept.dim() != 1 || kept.scalar_type() != at::kLong)
    throw Error(policy + ": a verdict's kept must be int64 [k]");
  if (kept.size(0) > m)
    throw Error(policy + ": the verdict keeps " + std::to_string(kept.size(0)) + " of " + std::to_string(m) +
                " image tokens");
  if (!kept.device().is_cpu()) return;
  const auto values = kept.accessor<int64_t, 1>();
  for (int64_t i = 0; i < kept.size(0); ++i)
    if (values[i] < 0 || values[i] >= m || (i > 0 && values[i] <= values[i - 1]))
      throw Error(policy + ": a verdict's kept must be ascending ordinals below " + std::to_string(m) + ", but entry " +
                  std::to_string(i) + " is " + std::to_string(values[i]));
}

int64_t PromptLayout::num_patches(int of_image) const {
  return num_image_tokens(of_image, false);
}

int64_t PromptLayout::num_image_tokens(int of_image, bool with_row_breaks) const {
  int64_t count = 0;
  for (const Segment& s : segments)
    if (s.image == of_image && is_image_token(s.kind, with_row_breaks)) count += s.end - s.begin;
  return count;
}

int64_t PromptLayout::num_image_tokens(bool with_row_breaks) const {
  int64_t count = 0;
  for (const Segment& s : segments)
    if (is_image_token(s.kind, with_row_breaks)) count += s.end - s.begin;
  return count;
}

int PromptLayout::example_of_image(int of_image) const {
  for (const Segment& s : segments)
    if (s.image == of_image) return s.example;
  return -1;
}

std::optional<PixelBox> PromptLayout::pixel_box(int64_t source_index) const {
  const auto behind = std::ranges::upper_bound(segments, source_index, {}, &Segment::begin);
  if (source_index < 0 || behind == segments.begin()) return std::nullopt;
  const Segment& s = *(behind - 1);
  if (s.kind != Kind::kPatches || source_index >= s.end) return std::nullopt;
  const ImageShape& shape = images[s.image];
  if (s.crop >= std::ssize(shape.crop_boxes)) return std::nullopt;
  const PixelBox& box = shape.crop_boxes[s.crop];
  const double width = (box.x1 - box.x0) / double(shape.grid.cols),
               height = (box.y1 - box.y0) / double(shape.grid.rows);
  const int64_t row = (source_index - s.begin) / s.grid.cols, column = (source_index - s.begin) % s.grid.cols;
  const double x = box.x0 + width * double(s.origin.cols + column), y = box.y0 + height * double(s.origin.rows + row);
  return PixelBox{x, y, x + width, y + height};
}

void finish_prompt_layout(PromptLayout& layout, at::Device device) {
  int64_t n = 0;
  for (const Segment& s : layout.segments) {
    check_segment(layout, s, n);
    n = s.end;
  }
  layout.num_tokens = n;
  std::vector<int64_t> kind(n), image(n), crop(n), example(n), row(n, -1), col(n, -1);
  for (const Segment& s : layout.segments)
    for (int64_t t = s.begin; t < s.end; ++t) {
      kind[t] = as_int(s.kind);
      image[t] = s.kind == Kind::kText ? -1 : s.image;
      crop[t] = s.kind == Kind::kPatches ? s.crop : -1;
      example[t] = s.example;
      if (s.kind == Kind::kPatches) {
        row[t] = s.origin.rows + (t - s.begin) / s.grid.cols;
        col[t] = s.origin.cols + (t - s.begin) % s.grid.cols;
      }
    }
  layout.kind = to_tensor(kind, device);
  layout.image = to_tensor(image, device);
  layout.crop = to_tensor(crop, device);
  layout.example = to_tensor(example, device);
  layout.grid_row = to_tensor(row, device);
  layout.grid_col = to_tensor(col, device);
  if (!layout.position_id.defined()) layout.position_id = at::arange(n, at::kLong);
  layout.position_id = layout.position_id.to(device);
  if (!layout.pinned.defined()) layout.pinned = at::zeros({n}, at::kBool);
  layout.pinned = layout.pinned.to(device);
  layout.pinned_per_image.resize(layout.images.size(), 0);
}

std::vector<CropFacts> crops_of(const PromptLayout& prompt) {
  std::map<std::pair<int, int>, CropFacts> crops;
  for (const Segment& s : prompt.segments) {
    if (s.kind != Kind::kPatches) continue;
    CropFacts& crop = crops[{s.image, s.crop}];
    crop.image = s.image;
    crop.crop = s.crop;
    crop.size += s.end - s.begin;
  }
  if (std::ranges::any_of(prompt.pinned_per_image, [](int64_t n) { return n > 0; })) {
    const at::Tensor pinned = prompt.pinned.cpu().contiguous();  // a request with pins waits for the device
    for (const Segment& s : prompt.segments)
      for (int64_t t = s.begin; s.kind == Kind::kPatches && t < s.end; ++t)
        crops[{s.image, s.crop}].pinned += pinned.const_data_ptr<bool>()[t] ? 1 : 0;
  }
  std::vector<int64_t> first_row = {0};  // of each image
  for (const ImageShape& image : prompt.images)
    first_row.push_back(first_row.back() + 1 + (image.tiling ? image.tiling->rows * image.tiling->cols : 0));
  std::vector<CropFacts> in_order;
  for (auto& [place, crop] : crops) {
    crop.class_row = first_row[static_cast<size_t>(crop.image)] + crop.crop;
    in_order.push_back(crop);
  }
  return in_order;
}

TokenLayout full_layout(std::shared_ptr<const PromptLayout> prompt, bool row_breaks_compete, int64_t begin) {
  const auto from_begin = [&](const at::Tensor& fact) {
    return begin == 0 ? fact : fact.slice(-1, begin, prompt->num_tokens);
  };
  TokenLayout layout;
  layout.source_index = at::arange(begin, prompt->num_tokens, prompt->kind.options());
  layout.position_id = from_begin(prompt->position_id);
  layout.kind = from_begin(prompt->kind);
  layout.image = from_begin(prompt->image);
  layout.crop = from_begin(prompt->crop);
  layout.example = from_begin(prompt->example);
  layout.pinned = from_begin(prompt->pinned);
  layout.image_tokens = competing(layout.kind, row_breaks_compete);
  layout.row_breaks_compete = row_breaks_compete;
  layout.is_whole = true;
  layout.begin = begin;
  layout.known_per_image.resize(prompt->images.size());
  for (const Segment& s : prompt->segments)
    if (s.begin >= begin && is_image_token(s.kind, row_breaks_compete))
      layout.known_per_image[static_cast<size_t>(s.image)] += s.end - s.begin;
  layout.prompt = std::move(prompt);
  return layout;
}

TokenLayout front_of(const TokenLayout& layout, int example) {
  const int64_t n = (layout.example < example).sum().item<int64_t>();
  const auto front = [&](const at::Tensor& fact) { return fact.slice(-1, 0, n); };
  TokenLayout f = layout;
  f.source_index = front(layout.source_index);
  f.position_id = front(layout.position_id);
  f.kind = front(layout.kind);
  f.image = front(layout.image);
  f.crop = front(layout.crop);
  f.example = front(layout.example);
  f.pinned = front(layout.pinned);
  f.image_tokens = layout.image_tokens.slice(0, 0, (layout.image_tokens < n).sum().item<int64_t>());
  f.known_per_image = {};
  return f;
}

TokenLayout joined(const TokenLayout& front, const TokenLayout& back) {
  const auto both = [&](at::Tensor TokenLayout::*fact) { return at::cat({front.*fact, back.*fact}, -1); };
  TokenLayout layout;
  layout.prompt = back.prompt;
  layout.source_index = both(&TokenLayout::source_index);
  layout.position_id = both(&TokenLayout::position_id);
  layout.kind = both(&TokenLayout::kind);
  layout.image = both(&TokenLayout::image);
  layout.crop = both(&TokenLayout::crop);
  layout.example = both(&TokenLayout::example);
  layout.pinned = both(&TokenLayout::pinned);
  layout.image_tokens = at::cat({front.image_tokens, back.image_tokens + front.num_tokens()});
  layout.row_breaks_compete = back.row_breaks_compete;
  layout.is_whole = front.is_whole && back.is_whole;
  layout.begin = front.begin;
  return layout;
}

Applied apply_cut(const TokenLayout& layout, const Cut& cut, Positions positions, std::string_view who,
                  int64_t first_position, bool renumbers) {
  check_kept(cut.kept, layout.num_image_tokens(), who);
  Applied applied;
  if (cut.added.empty() && !cut.crop_by_crop && cut.kept.size(0) == layout.num_image_tokens() &&
      !(renumbers && positions == Positions::kCompact)) {
    applied.layout = layout;
    applied.unchanged = true;
    return applied;
  }
  const at::Tensor places = places_of(layout, cut.crop_by_crop);
  at::Tensor index = surviving(layout, cut.kept, cut.crop_by_crop);
  if (cut.crop_by_crop) index = index.index_select(0, places.index_select(0, index).argsort(/*stable=*/true, 0, false));
  at::Tensor fact_index = index;  // whose facts each token of the new sequence takes
  at::Tensor source = layout.source_index.index_select(0, index);
  at::Tensor is_new;
  if (!cut.added.empty()) {
    const Entering entering = entering_tokens(layout, places, cut.added, who);
    const int64_t r = entering.vectors.size(0), n = layout.num_tokens(), stayed = index.size(0);
    const at::Tensor order =
        at::cat({places.index_select(0, index) * 3 + 1, entering.sort_key}).argsort(/*stable=*/true, 0, false);
    index = at::cat({index, at::arange(n, n + r, index.options())}).index_select(0, order);
    fact_index = at::cat({fact_index, entering.position_from}).index_select(0, order);
    source = at::cat({source, entering.stands_at}).index_select(0, order);
    is_new = order >= stayed;
    applied.has_new_tokens = true;
    applied.new_vectors = entering.vectors;
  }
  TokenLayout& next = applied.layout;
  next.prompt = layout.prompt;
  next.row_breaks_compete = layout.row_breaks_compete;
  next.begin = layout.begin;
  next.known_per_image = cut.known_per_image;
  next.source_index = source;
  next.position_id = select_positions(layout.position_id, fact_index);
  next.kind = layout.kind.index_select(0, fact_index);
  next.image = layout.image.index_select(0, fact_index);
  next.crop = layout.crop.index_select(0, fact_index);
  next.example = layout.example.index_select(0, fact_index);
  next.pinned = layout.pinned.index_select(0, fact_index);
  if (is_new.defined()) next.kind.masked_fill_(is_new, as_int(Kind::kPatches));
  if (positions == Positions::kCompact) {
    if (next.position_id.dim() != 1)
      throw Error(std::string(who) + ": positions=compact is not possible with three-part position ids");
    next.position_id = at::arange(first_position, first_position + index.size(0), index.options());
  }
  // Image tokens are those that competed and stayed, and what entered; without asking the device how many they are.
  at::Tensor competes = at::zeros({layout.num_tokens()}, index.options().dtype(at::kBool));
  competes.index_fill_(0, layout.image_tokens, true);
  at::Tensor competes_next = competes.index_select(0, fact_index);
  if (is_new.defined()) competes_next = competes_next | is_new;
  if (index.device().is_cpu() || is_new.defined()) {
    next.image_tokens = competes_next.nonzero().squeeze(1);
  } else {
    const int64_t n = index.size(0);
    const at::Tensor rank = at::arange(n, index.options()) + competes_next.logical_not().to(at::kLong) * n;
    next.image_tokens = std::get<0>(rank.sort()).slice(0, 0, cut.kept.size(0));
  }
  applied.index = index;
  applied.facts_from = fact_index;
  return applied;
}

}  // namespace espalier
