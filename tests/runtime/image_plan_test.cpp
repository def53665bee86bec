// SPDX-License-Identifier: Apache-2.0
// What a picture becomes: sizes against Transformers (tests/golden/pixels/any_resolution.json), order and places
// against a stitched canvas that is built cell by cell, pixel boxes against the pixels themselves.
#include "families/image_plan.h"

#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/json_file.h"
#include "families/llava/pixels.h"
#include "families/llava_next/pixels.h"
#include "runtime/prompt_packer.h"
#include "tests/support/tiny_llava.h"

namespace espalier {
namespace {

using test::picture;

const LoadedModel& tiny_next() {
  return test::tiny_model("llava_next_mistral");
}

// The published geometry: tiles of 336 pixels, 24 x 24 patches.
CropProcessor published_tiles() {
  CropProcessor tiles{.processor = ImageProcessor::load(tiny_next().folder), .grid = 24, .patch_size = 14};
  tiles.processor.crop_size = {336, 336};
  tiles.processor.shortest_edge = 336;
  tiles.processor.grid_pinpoints = {{336, 672}, {672, 336}, {672, 672}, {1008, 336}, {336, 1008}};
  return tiles;
}

ImagePlan plan_of(const LoadedModel& model, int width, int height) {
  return model.front_end.plan(width, height);
}

TEST(ImagePlan, AnyResolutionSizesEqualTransformers) {
  const CropProcessor tiles = published_tiles();
  const auto rows = read_json_file(test::golden_folder() / "pixels" / "any_resolution.json");
  ASSERT_GT(rows.size(), 600U);
  for (const auto& row : rows) {
    const auto expected = row.get<std::vector<int64_t>>();
    const int height = static_cast<int>(expected[0]), width = static_cast<int>(expected[1]);
    SCOPED_TRACE(testing::Message() << height << " x " << width);
    const Tiling tiling = tiling_of(tiles.processor, width, height);
    EXPECT_EQ((std::vector<int64_t>{tiling.rows, tiling.cols, tiling.height, tiling.width}),
              (std::vector<int64_t>(expected.begin() + 2, expected.begin() + 6)));
    const ImagePlan plan = plan_tiles(tiles, width, height);
    int64_t patches = 0, row_breaks = 0;
    for (const Segment& s : plan.segments)
      (s.kind == Segment::Kind::kPatches ? patches : row_breaks) += s.end - s.begin;
    EXPECT_EQ(row_breaks, expected[6]);
    EXPECT_EQ(patches, 24 * 24 + expected[6] * expected[7]);
  }
}

// Every patch of the stitched tiles by itself: canvas row and column -> crop, row and column in it.
struct Place {
  int64_t crop, row, col;
  bool operator==(const Place&) const = default;
};

TEST(ImagePlan, OrderIsTheFullViewThenTheUnpaddedRows) {
  const int64_t n = 4;
  for (const auto& [width, height] : {std::pair{60, 70},
                                      {76, 100},
                                      {330, 40},
                                      {36, 310},
                                      {56, 56},
                                      {112, 111},
                                      {700, 1},
                                      {1, 700},
                                      {57, 2},
                                      {61, 64}}) {
    SCOPED_TRACE(testing::Message() << width << " x " << height);
    const ImagePlan plan = plan_of(tiny_next(), width, height);
    const GridSize tiling = *plan.shape.tiling;
    std::vector<Place> expected;
    for (int64_t i = 0; i < n * n; ++i) expected.push_back({0, i / n, i % n});
    // What black borders cover by whole patches on both sides is cut away; the specification's formulas, step by step.
    const int64_t canvas_rows = tiling.rows * n, canvas_cols = tiling.cols * n;
    int64_t cut_rows = 0, cut_cols = 0;
    if (double(width) / height > double(canvas_cols) / double(canvas_rows)) {
      cut_rows =
          (canvas_rows - int64_t(std::floor(std::round(height * (double(canvas_cols) / width) * 1e7) / 1e7))) / 2;
    } else {
      cut_cols =
          (canvas_cols - int64_t(std::floor(std::round(width * (double(canvas_rows) / height) * 1e7) / 1e7))) / 2;
    }
    constexpr Place kRowBreak{-1, -1, -1};
    for (int64_t r = cut_rows; r < canvas_rows - cut_rows; ++r) {
      for (int64_t c = cut_cols; c < canvas_cols - cut_cols; ++c)
        expected.push_back({1 + r / n * tiling.cols + c / n, r % n, c % n});
      expected.push_back(kRowBreak);
    }
    std::vector<Place> places;
    std::vector<int64_t> rows;
    for (const Segment& s : plan.segments) {
      ASSERT_EQ(s.begin, std::ssize(places));
      for (int64_t t = 0; t < s.end - s.begin; ++t) {
        if (s.kind == Segment::Kind::kRowBreak) {
          places.push_back(kRowBreak);
          continue;
        }
        places.push_back({s.crop, s.origin.rows + t / s.grid.cols, s.origin.cols + t % s.grid.cols});
        rows.push_back((places.back().crop * n + places.back().row) * n + places.back().col);
      }
    }
    EXPECT_EQ(places, expected);
    EXPECT_EQ(plan.num_tower_rows, (1 + tiling.rows * tiling.cols) * n * n);
    ASSERT_TRUE(plan.tower_row.defined());
    EXPECT_EQ(std::vector<int64_t>(plan.tower_row.const_data_ptr<int64_t>(),
                                   plan.tower_row.const_data_ptr<int64_t>() + plan.tower_row.numel()),
              rows);
  }
}

TEST(ImagePlan, RowsOfSeveralImagesFollowEachOther) {
  const std::vector<ImagePlan> plans = {plan_of(tiny_next(), 60, 70), plan_of(tiny_next(), 100, 90)};
  const at::Tensor rows = tower_rows(plans);
  const int64_t first = plans[0].tower_row.size(0);
  EXPECT_TRUE(rows.slice(0, 0, first).equal(plans[0].tower_row));
  EXPECT_TRUE(rows.slice(0, first).equal(plans[1].tower_row + plans[0].num_tower_rows));
  const std::vector<ImagePlan> plain = {plan_of(test::tiny_llava(), 60, 70), plan_of(test::tiny_llava(), 9, 9)};
  EXPECT_FALSE(tower_rows(plain).defined());
}

// The mean of the picture inside a token's box is the mean of the pixels that the token's patch has.
void expect_boxes_show_the_patches(const LoadedModel& model, const Image& image) {
  const PackedPrompt packed =
      pack_prompt(model, RawPrompt{"<image>", {{.image = std::make_shared<const Image>(image), .pins = {}}}, {}}, 0);
  const ImagePlan& plan = packed.plans[0];
  const at::Tensor pixels = model.front_end.pixels(plan, image);
  const int64_t patch = pixels.size(-1) / plan.shape.grid.cols;
  const ImageProcessor processor = ImageProcessor::load(model.folder);
  int checked = 0;
  for (const Segment& s : packed.layout->segments) {
    for (int64_t t = s.begin; t < s.end; ++t) {
      const std::optional<PixelBox> box = packed.layout->pixel_box(t);
      ASSERT_EQ(box.has_value(), s.kind == Segment::Kind::kPatches);
      if (!box || box->x0 < 0 || box->y0 < 0 || box->x1 > image.width || box->y1 > image.height) continue;
      const int64_t y = (s.origin.rows + (t - s.begin) / s.grid.cols) * patch,
                    x = (s.origin.cols + (t - s.begin) % s.grid.cols) * patch;
      const double shown = pixels[s.crop][0].slice(0, y, y + patch).slice(1, x, x + patch).mean().item<double>();
      double sum = 0;
      int count = 0;
      for (int py = int(std::ceil(box->y0 - 0.5)); py + 0.5 < box->y1; ++py)
        for (int px = int(std::ceil(box->x0 - 0.5)); px + 0.5 < box->x1; ++px, ++count)
          sum += image.rgb[3 * (size_t(py) * image.width + px)];
      ASSERT_GT(count, 0);
      EXPECT_NEAR((shown * processor.image_std[0] + processor.image_mean[0]) * 255, sum / count, 6) << "token " << t;
      ++checked;
    }
  }
  EXPECT_GT(checked, plan.shape.grid.rows * plan.shape.grid.cols / 2);
}

TEST(PixelBox, ShowsWhatThePatchShows) {
  const auto slope = [](int width, int height) {  // a gradient both ways, so that a wrong place shows
    Image image{width, height, {}};
    for (int y = 0; y < height; ++y)
      for (int x = 0; x < width; ++x)
        for (int c = 0; c < 3; ++c) image.rgb.push_back(static_cast<uint8_t>(40 + 130 * x / width + 70 * y / height));
    return image;
  };
  for (const auto& [width, height] : {std::pair{300, 280}, {140, 400}, {500, 130}, {112, 112}})
    for (const char* checkpoint : {"llava15", "llava_next_mistral", "llava_next_vicuna"}) {
      SCOPED_TRACE(testing::Message() << checkpoint << " " << width << " x " << height);
      expect_boxes_show_the_patches(test::tiny_model(checkpoint), slope(width, height));
    }
}

TEST(PixelBox, OfPinsOnTiles) {
  ImagePart part{.image = picture(112, 112, 3), .pins = {{60, 3, 61, 4}}};
  const PackedPrompt packed = pack_prompt(tiny_next(), RawPrompt{"<image>", {part}, {}}, 0);
  std::vector<PixelBox> boxes;
  for (int64_t t = 0; t < packed.layout->num_tokens; ++t)
    if (packed.layout->pinned[t].item<bool>()) boxes.push_back(*packed.layout->pixel_box(t));
  EXPECT_EQ(boxes, (std::vector<PixelBox>{{56, 0, 84, 28}, {56, 0, 70, 14}}));  // of the full view and of tile 2
  EXPECT_EQ(packed.layout->pinned_per_image, (std::vector<int64_t>{2}));
}

}  // namespace
}  // namespace espalier
