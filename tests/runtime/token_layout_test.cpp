// SPDX-License-Identifier: Apache-2.0
// Layouts from segments, and what a verdict makes of one: indices, positions, new tokens and row breaks against
// hand-made expectations.
#include "layout/cut.h"

#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "espalier/error.h"

namespace espalier {
namespace {

using Kind = Segment::Kind;
using Numbers = std::vector<int64_t>;

Numbers numbers(const at::Tensor& t) {
  const at::Tensor host = t.to(at::kLong).contiguous();
  return {host.const_data_ptr<int64_t>(), host.const_data_ptr<int64_t>() + host.numel()};
}

at::Tensor longs(const Numbers& values) {
  return at::tensor(values, at::kLong);
}

Segment text(int64_t begin, int64_t end, int example = 0) {
  return {.kind = Kind::kText, .begin = begin, .end = end, .example = example, .grid = {}, .origin = {}};
}
Segment patches(int64_t begin, GridSize grid, int image, int crop = 0, GridSize origin = {}, int example = 0) {
  return {.kind = Kind::kPatches,
          .begin = begin,
          .end = begin + grid.rows * grid.cols,
          .image = image,
          .crop = crop,
          .example = example,
          .grid = grid,
          .origin = origin};
}
Segment row_break(int64_t at, int image) {
  return {.kind = Kind::kRowBreak, .begin = at, .end = at + 1, .image = image, .example = 0, .grid = {}, .origin = {}};
}

std::shared_ptr<const PromptLayout> finished(std::vector<ImageShape> images, std::vector<Segment> segments) {
  PromptLayout layout;
  layout.images = std::move(images);
  layout.segments = std::move(segments);
  finish_prompt_layout(layout, at::kCPU);
  return std::make_shared<PromptLayout>(layout);
}

// 0 1 | 2 3 4 5 (image 0, 2 x 2) | 6 | 7 8 9 (image 1, 1 x 3) | 10
std::shared_ptr<const PromptLayout> two_images() {
  return finished({{{2, 2}, {}}, {{1, 3}, {}}}, {text(0, 2, -1), patches(2, {2, 2}, 0), text(6, 7),
                                                 patches(7, {1, 3}, 1, 0, {}, 1), text(10, 11, 1)});
}

// Full view 0 1, then two tiles of 2 x 2 in stitched rows: 2 3 | 4 5 | break 6, 7 8 | 9 10 | break 11; text 12.
std::shared_ptr<const PromptLayout> tiled() {
  return finished({{{2, 2}, GridSize{1, 2}}},
                  {patches(0, {1, 2}, 0), patches(2, {1, 2}, 0, 1), patches(4, {1, 2}, 0, 2), row_break(6, 0),
                   patches(7, {1, 2}, 0, 1, {1, 0}), patches(9, {1, 2}, 0, 2, {1, 0}), row_break(11, 0), text(12, 13)});
}

Applied apply(const TokenLayout& layout, const Cut& cut, Positions positions = Positions::kKeep) {
  return apply_cut(layout, cut, positions, "mine");
}

std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

TEST(FinishPromptLayout, FillsWhatEachTokenIs) {
  const auto layout = two_images();
  EXPECT_EQ(layout->num_tokens, 11);
  EXPECT_EQ(numbers(layout->position_id), (Numbers{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}));
  EXPECT_EQ(numbers(layout->image), (Numbers{-1, -1, 0, 0, 0, 0, -1, 1, 1, 1, -1}));
  EXPECT_EQ(numbers(layout->crop), (Numbers{-1, -1, 0, 0, 0, 0, -1, 0, 0, 0, -1}));
  EXPECT_EQ(numbers(layout->example), (Numbers{-1, -1, 0, 0, 0, 0, 0, 1, 1, 1, 1}));
  EXPECT_EQ(numbers(layout->grid_row), (Numbers{-1, -1, 0, 0, 1, 1, -1, 0, 0, 0, -1}));
  EXPECT_EQ(numbers(layout->grid_col), (Numbers{-1, -1, 0, 1, 0, 1, -1, 0, 1, 2, -1}));
  EXPECT_EQ(numbers(layout->pinned), Numbers(11, 0));
  EXPECT_EQ(layout->num_patches(0), 4);
  EXPECT_EQ(layout->example_of_image(1), 1);
}

TEST(FinishPromptLayout, OriginPlacesAStripInItsCrop) {
  const auto layout = tiled();
  EXPECT_EQ(numbers(layout->grid_row), (Numbers{0, 0, 0, 0, 0, 0, -1, 1, 1, 1, 1, -1, -1}));
  EXPECT_EQ(numbers(layout->crop), (Numbers{0, 0, 1, 1, 2, 2, -1, 1, 1, 2, 2, -1, -1}));
  EXPECT_EQ(layout->num_image_tokens(0, false), 10);
  EXPECT_EQ(layout->num_image_tokens(0, true), 12);
}

TEST(FinishPromptLayout, RefusesSegmentsThatContradict) {
  const auto refused = [](std::vector<Segment> segments) {
    return error_of([&] { finished({{{2, 2}, {}}}, std::move(segments)); });
  };
  EXPECT_EQ(refused({text(0, 2), text(3, 4)}), "layout: segment [3, 4) does not begin where the one before ends (2)");
  EXPECT_EQ(refused({patches(0, {2, 2}, 1)}), "layout: segment [0, 4) names image 1 of 1");
  EXPECT_EQ(refused({patches(0, {3, 2}, 0)}), "layout: segment [0, 6) reaches out of its crop of 2 x 2");
  EXPECT_EQ(refused({patches(0, {1, 2}, 0, 0, {1, 1})}), "layout: segment [0, 2) reaches out of its crop of 2 x 2");
  Segment wrong = patches(0, {2, 2}, 0);
  wrong.end = 3;
  EXPECT_EQ(refused({wrong}), "layout: segment [0, 3) holds 3 patches, but its grid is 2 x 2");
  Segment wide = row_break(0, 0);
  wide.end = 2;
  EXPECT_EQ(refused({wide}), "layout: segment [0, 2): a row break is one token");
}

TEST(ApplyVerdict, DropsAndKeepsPositions) {
  const TokenLayout before = full_layout(two_images(), false);
  EXPECT_EQ(numbers(before.image_tokens), (Numbers{2, 3, 4, 5, 7, 8, 9}));
  const Applied applied = apply(before, {.kept = longs({1, 3, 6})});
  EXPECT_FALSE(applied.unchanged);
  EXPECT_FALSE(applied.has_new_tokens);
  EXPECT_EQ(numbers(applied.index), (Numbers{0, 1, 3, 5, 6, 9, 10}));
  EXPECT_EQ(numbers(applied.layout.source_index), (Numbers{0, 1, 3, 5, 6, 9, 10}));
  EXPECT_EQ(numbers(applied.layout.position_id), (Numbers{0, 1, 3, 5, 6, 9, 10}));
  EXPECT_EQ(numbers(applied.layout.image), (Numbers{-1, -1, 0, 0, -1, 1, -1}));
  EXPECT_EQ(numbers(applied.layout.example), (Numbers{-1, -1, 0, 0, 0, 1, 1}));
  EXPECT_EQ(numbers(applied.layout.image_tokens), (Numbers{2, 3, 5}));
  // A second verdict counts in what is there, and source_index still names the unpruned sequence.
  const Applied again = apply(applied.layout, {.kept = longs({2})});
  EXPECT_EQ(numbers(again.index), (Numbers{0, 1, 4, 5, 6}));
  EXPECT_EQ(numbers(again.layout.source_index), (Numbers{0, 1, 6, 9, 10}));
}

TEST(ApplyVerdict, KeepingAllChangesNothingAndKeepingNoneLeavesTheText) {
  const TokenLayout before = full_layout(two_images(), false);
  EXPECT_TRUE(apply(before, {.kept = longs({0, 1, 2, 3, 4, 5, 6})}).unchanged);
  const Applied none = apply(before, {.kept = longs({})});
  EXPECT_EQ(numbers(none.layout.source_index), (Numbers{0, 1, 6, 10}));
  EXPECT_EQ(none.layout.num_image_tokens(), 0);
}

TEST(ApplyVerdict, CompactRenumbers) {
  const TokenLayout before = full_layout(two_images(), false);
  EXPECT_EQ(numbers(apply(before, {.kept = longs({1, 3, 6})}, Positions::kCompact).layout.position_id),
            (Numbers{0, 1, 2, 3, 4, 5, 6}));
  PromptLayout three_part = *two_images();
  three_part.position_id = at::stack({three_part.position_id, three_part.position_id, three_part.position_id});
  const TokenLayout mrope = full_layout(std::make_shared<PromptLayout>(three_part), false);
  EXPECT_EQ(numbers(apply(mrope, {.kept = longs({0})}).layout.position_id),
            (Numbers{0, 1, 2, 6, 10, 0, 1, 2, 6, 10, 0, 1, 2, 6, 10}));
  EXPECT_THROW(apply(mrope, {.kept = longs({0})}, Positions::kCompact), Error);
}

NewTokens new_tokens(NewTokens::Where where, const Numbers& stands_at, const Numbers& position_from) {
  return {.where = where,
          .vectors = at::zeros({static_cast<int64_t>(stands_at.size()), 4}),
          .stands_at = longs(stands_at),
          .position_from = longs(position_from)};
}

TEST(ApplyVerdict, NewTokensInPlace) {
  const TokenLayout before = full_layout(two_images(), false);
  // Tokens 2 and 9 stay; new ones stand where 4 and 8 stood.
  Cut verdict{.kept = longs({0, 6})};
  verdict.added = {new_tokens(NewTokens::Where::kInPlace, {2, 5}, {2, 5})};
  const Applied applied = apply(before, verdict);
  EXPECT_TRUE(applied.has_new_tokens);
  EXPECT_EQ(numbers(applied.index), (Numbers{0, 1, 2, 11, 6, 12, 9, 10}));
  EXPECT_EQ(numbers(applied.layout.source_index), (Numbers{0, 1, 2, 4, 6, 8, 9, 10}));
  EXPECT_EQ(numbers(applied.layout.position_id), (Numbers{0, 1, 2, 4, 6, 8, 9, 10}));
  EXPECT_EQ(numbers(applied.layout.image), (Numbers{-1, -1, 0, 0, -1, 1, 1, -1}));
  EXPECT_EQ(numbers(applied.layout.image_tokens), (Numbers{2, 3, 5, 6}));
  EXPECT_EQ(applied.new_vectors.size(0), 2);
}

// A token that is replaced by a vector in its own place: it is not kept, the vector has its index.
TEST(ApplyVerdict, NewTokensInFrontAndBehindTheirCrop) {
  const TokenLayout before = full_layout(two_images(), false);
  Cut verdict{.kept = longs({1, 3, 4})};  // tokens 3, 5 and 7
  verdict.added = {new_tokens(NewTokens::Where::kFront, {-1, -1}, {0, 4}),
                   new_tokens(NewTokens::Where::kBehind, {-1, 2, -1}, {3, 2, 6})};
  const Applied applied = apply(before, verdict);
  // Image 0: class row (11), 3, 5, rest (13), cluster at 4 (14); image 1: class row (12), 7, rest (15).
  EXPECT_EQ(numbers(applied.index), (Numbers{0, 1, 11, 3, 5, 13, 14, 6, 12, 7, 15, 10}));
  EXPECT_EQ(numbers(applied.layout.source_index), (Numbers{0, 1, -1, 3, 5, -1, 4, 6, -1, 7, -1, 10}));
  EXPECT_EQ(numbers(applied.layout.position_id), (Numbers{0, 1, 2, 3, 5, 5, 4, 6, 7, 7, 9, 10}));
  EXPECT_EQ(numbers(applied.layout.image_tokens), (Numbers{2, 3, 4, 5, 6, 8, 9, 10}));
  EXPECT_EQ(numbers(applied.layout.kind), (Numbers{0, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1, 0}));
}

TEST(ApplyVerdict, NewTokensBehindTheirImage) {
  const TokenLayout before = full_layout(tiled(), false);
  // Tokens: full view 0 1; rows 2 … 5 and 7 … 10 of two tiles, each closed by a row break; text 12.
  Cut verdict{.kept = longs({0, 3})};
  verdict.added = {new_tokens(NewTokens::Where::kBehindImage, {2, -1}, {2, 9})};
  EXPECT_EQ(numbers(apply(before, verdict).layout.source_index), (Numbers{0, 3, 6, 2, -1, 12}));
}

// Tiles stand stitched before, and one behind the other afterwards; row breaks leave.
TEST(ApplyVerdict, ImagesGoCropByCrop) {
  const TokenLayout before = full_layout(tiled(), false);
  Cut verdict{.kept = longs({1, 2, 4, 6, 9})};  // tokens 1; 2 and 4; 7 and 10
  verdict.crop_by_crop = true;
  const Applied plain = apply(before, verdict);
  EXPECT_EQ(numbers(plain.layout.source_index), (Numbers{1, 2, 7, 4, 10, 12}));
  EXPECT_EQ(numbers(plain.layout.position_id), (Numbers{1, 2, 7, 4, 10, 12}));
  EXPECT_EQ(numbers(plain.layout.crop), (Numbers{0, 1, 1, 2, 2, -1}));
  EXPECT_EQ(numbers(plain.layout.image_tokens), (Numbers{0, 1, 2, 3, 4}));
  verdict.added = {new_tokens(NewTokens::Where::kFront, {-1, -1}, {2, 4}),
                   new_tokens(NewTokens::Where::kInPlace, {8}, {8}),
                   new_tokens(NewTokens::Where::kBehind, {3, -1}, {3, 5})};
  const Applied merged = apply(before, verdict);
  // Tile 1 (2 3 7 8): class row, 2, 7, behind it the vector at 3; tile 2 (4 5 9 10): class row, 4, the vector at 9, 10,
  // rest.
  EXPECT_EQ(numbers(merged.layout.source_index), (Numbers{1, -1, 2, 7, 3, -1, 4, 9, 10, -1, 12}));
  // Even where all stay, their order changes.
  const Applied all = apply(before, {.kept = longs({0, 1, 2, 3, 4, 5, 6, 7, 8, 9}), .crop_by_crop = true});
  EXPECT_EQ(numbers(all.layout.source_index), (Numbers{0, 1, 2, 3, 7, 8, 4, 5, 9, 10, 12}));
}

TEST(ApplyVerdict, RowBreaksFollowTheirRow) {
  const TokenLayout before = full_layout(tiled(), false);
  EXPECT_EQ(before.num_image_tokens(), 10);
  // Ordinals: full view 0 1, first row 2 … 5 (tokens 2 … 5), second row 6 … 9 (tokens 7 … 10).
  EXPECT_EQ(numbers(apply(before, {.kept = longs({0, 5})}).layout.source_index), (Numbers{0, 5, 6, 12}));
  EXPECT_EQ(numbers(apply(before, {.kept = longs({0, 6})}).layout.source_index), (Numbers{0, 7, 11, 12}));
  EXPECT_EQ(numbers(apply(before, {.kept = longs({0, 1})}).layout.source_index), (Numbers{0, 1, 12}));
  const Applied first = apply(before, {.kept = longs({2, 9})});
  EXPECT_EQ(numbers(first.layout.source_index), (Numbers{2, 6, 10, 11, 12}));
  EXPECT_EQ(numbers(first.layout.image_tokens), (Numbers{0, 2}));
  EXPECT_EQ(numbers(apply(first.layout, {.kept = longs({1})}).layout.source_index), (Numbers{10, 11, 12}));
}

TEST(ApplyVerdict, RowBreaksThatCompeteAreJudgedLikePatches) {
  const TokenLayout before = full_layout(tiled(), true);
  EXPECT_EQ(before.num_image_tokens(), 12);
  const Applied applied = apply(before, {.kept = longs({0, 6})});
  EXPECT_EQ(numbers(applied.layout.source_index), (Numbers{0, 6, 12}));
  EXPECT_EQ(numbers(applied.layout.image_tokens), (Numbers{0, 1}));
}

TEST(ApplyVerdict, RefusesWhatIsNoVerdict) {
  const TokenLayout before = full_layout(two_images(), false);
  const auto refused = [&](const at::Tensor& kept) { return error_of([&] { apply(before, {.kept = kept}); }); };
  EXPECT_EQ(refused(at::Tensor()), "mine: a verdict's kept must be int64 [k]");
  EXPECT_EQ(refused(longs({0}).to(at::kInt)), "mine: a verdict's kept must be int64 [k]");
  EXPECT_EQ(refused(longs({0, 1, 2, 3, 4, 5, 6, 7})), "mine: the verdict keeps 8 of 7 image tokens");
  for (const Numbers& wrong : {Numbers{2, 1}, Numbers{1, 1}, Numbers{7}, Numbers{-1}})
    EXPECT_EQ(refused(longs(wrong)).find("mine: a verdict's kept must be ascending ordinals below 7"), 0U);
  Cut homeless{.kept = longs({0})};
  homeless.added = {new_tokens(NewTokens::Where::kInPlace, {-1}, {0})};
  EXPECT_THROW(apply(before, homeless), Error);
}

}  // namespace
}  // namespace espalier
