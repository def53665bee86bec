// SPDX-License-Identifier: Apache-2.0
#include "runtime/image_plan.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <string>
#include <utility>

#include "espalier/error.h"

namespace espalier {

namespace {

// Whole part of a non-negative x rounded to seven decimals, as Python's int(round(x, 7)).
int64_t whole_part_of_rounded(double x) {
  std::array<char, 512> digits;
  const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), x, std::chars_format::fixed, 7).ptr;
  int64_t whole = 0;
  std::from_chars(digits.data(), end, whole);  // up to the point
  return whole;
}

// Rows and columns of the stitched tiles that un-padding leaves: what black borders fill, it cuts off at both ends.
struct Uncut {
  int64_t first_row, last_row, first_col, last_col;
};

Uncut unpadded(GridSize stitched, int width, int height) {
  const auto rows = static_cast<double>(stitched.rows), cols = static_cast<double>(stitched.cols);
  Uncut left{0, stitched.rows, 0, stitched.cols};
  if (static_cast<double>(width) / height > cols / rows) {
    const int64_t padding = (stitched.rows - whole_part_of_rounded(height * (cols / width))) / 2;
    left.first_row = padding;
    left.last_row -= padding;
  } else {
    const int64_t padding = (stitched.cols - whole_part_of_rounded(width * (rows / height))) / 2;
    left.first_col = padding;
    left.last_col -= padding;
  }
  return left;
}

class PlanBuilder {
 public:
  explicit PlanBuilder(ImagePlan& plan) : plan_(plan) {}

  // A rectangle of a crop, row by row.
  void add_patches(int crop, GridSize grid, GridSize origin) {
    if (grid.rows * grid.cols == 0) return;
    Segment s;
    s.kind = Segment::Kind::kPatches;
    s.begin = plan_.num_tokens();
    s.end = s.begin + grid.rows * grid.cols;
    s.crop = crop;
    s.grid = grid;
    s.origin = origin;
    plan_.segments.push_back(s);
  }

  void add_row_break() {
    Segment s;
    s.kind = Segment::Kind::kRowBreak;
    s.begin = plan_.num_tokens();
    s.end = s.begin + 1;
    plan_.segments.push_back(s);
  }

 private:
  ImagePlan& plan_;
};

// The tower's rows are the patches of each whole crop, row by row.
void set_tower_rows(ImagePlan& plan, int64_t crops) {
  const GridSize whole = plan.shape.grid;
  plan.num_tower_rows = crops * whole.rows * whole.cols;
  std::vector<int64_t> rows;
  for (const Segment& s : plan.segments)
    for (int64_t t = 0; s.kind == Segment::Kind::kPatches && t < s.end - s.begin; ++t)
      rows.push_back((s.crop * whole.rows + s.origin.rows + t / s.grid.cols) * whole.cols + s.origin.cols +
                     t % s.grid.cols);
  bool as_they_come = std::ssize(rows) == plan.num_tower_rows;
  for (int64_t i = 0; as_they_come && i < std::ssize(rows); ++i) as_they_come = rows[i] == i;
  if (as_they_come) return;
  plan.tower_row = at::empty({std::ssize(rows)}, at::kLong);
  std::ranges::copy(rows, plan.tower_row.data_ptr<int64_t>());
}

ImagePlan plan_single_crop(const VisionConfig& vision, const PictureProcessors& processors, int width, int height) {
  const int64_t n = processors.crop_grid, side = n * vision.patch_size;
  ImagePlan plan;
  plan.shape = {.grid = {n, n}, .tiling = {}, .crop_boxes = {}};
  plan.shape.crop_boxes = crop_boxes(processors.image_processor, width, height);
  plan.shape.crop_boxes.resize(1);
  plan.pixel_shape = {1, vision.channels, side, side};
  PlanBuilder(plan).add_patches(0, plan.shape.grid, {});
  set_tower_rows(plan, 1);
  return plan;
}

// LLaVA-NeXT: the full view, then the stitched tiles row by row, without what un-padding cuts away; behind each of
// their rows stands a row break.
ImagePlan plan_any_resolution(const VisionConfig& vision, const PictureProcessors& processors, int width, int height) {
  if (!processors.has_tiles) return plan_single_crop(vision, processors, width, height);
  const Tiling tiling = tiling_of(processors.image_processor, width, height);
  const int64_t n = processors.crop_grid, side = n * vision.patch_size;
  ImagePlan plan;
  plan.shape = {.grid = {n, n}, .tiling = GridSize{tiling.rows, tiling.cols}, .crop_boxes = {}};
  plan.shape.crop_boxes = crop_boxes(processors.image_processor, width, height);
  const int64_t crops = 1 + int64_t{tiling.rows} * tiling.cols;
  plan.pixel_shape = {crops, vision.channels, side, side};
  PlanBuilder builder(plan);
  builder.add_patches(0, {n, n}, {});
  const Uncut left = unpadded({tiling.rows * n, tiling.cols * n}, width, height);
  for (int64_t row = left.first_row; row < left.last_row; ++row) {
    for (int64_t tile = 0; tile < tiling.cols; ++tile) {
      const int64_t first = std::clamp(left.first_col - tile * n, int64_t{0}, n),
                    last = std::clamp(left.last_col - tile * n, int64_t{0}, n);
      builder.add_patches(static_cast<int>(1 + row / n * tiling.cols + tile), {1, last - first}, {row % n, first});
    }
    builder.add_row_break();
  }
  set_tower_rows(plan, crops);
  return plan;
}

// Qwen2.5-VL: one crop in the picture's own proportions, a token for each cell of merged patches.
ImagePlan plan_dynamic(const VisionConfig& vision, const PictureProcessors& processors, int width, int height) {
  const auto [rows, cols] = patch_grid(processors.qwen_image_processor, width, height);
  ImagePlan plan;
  plan.shape = {.grid = {rows / vision.merge_size, cols / vision.merge_size}, .tiling = {}, .crop_boxes = {}};
  plan.shape.crop_boxes = {{0, 0, static_cast<double>(width), static_cast<double>(height)}};
  const int64_t values = vision.channels * vision.temporal_patch_size * vision.patch_size * vision.patch_size;
  plan.pixel_shape = {int64_t{rows} * cols, values};
  PlanBuilder(plan).add_patches(0, plan.shape.grid, {});
  set_tower_rows(plan, 1);
  return plan;
}

ImagePlan plan_with(const LoadedModel& model, std::shared_ptr<const PictureProcessors> processors, int width,
                    int height) {
  const auto plan_of_family = [&] {
    switch (model.config.family) {
      case Family::kLlava:
        return plan_single_crop(model.config.vision, *processors, width, height);
      case Family::kLlavaNext:
        return plan_any_resolution(model.config.vision, *processors, width, height);
      case Family::kQwen25Vl:
        return plan_dynamic(model.config.vision, *processors, width, height);
    }
    TORCH_CHECK(false, "family ", static_cast<int>(model.config.family), " is not one");
  };
  ImagePlan plan = plan_of_family();
  plan.processors = std::move(processors);
  return plan;
}

// Processors that make about the wanted shape. LLaVA: crops of a smaller side, everything else in proportion.
// Qwen2.5-VL: a limit of pixels.
std::shared_ptr<const PictureProcessors> smaller(const PictureProcessors& own, const LoadedModel& model,
                                                 const ImageShape& wanted) {
  PictureProcessors processors = own;
  if (model.config.family == Family::kQwen25Vl) {
    QwenImageProcessor& qwen = processors.qwen_image_processor;
    const int64_t side = int64_t{qwen.patch_size} * qwen.merge_size;
    qwen.max_pixels = wanted.grid.rows * wanted.grid.cols * side * side;
    qwen.min_pixels = std::min(qwen.min_pixels, qwen.max_pixels);
    return std::make_shared<const PictureProcessors>(std::move(processors));
  }
  if (wanted.grid.rows != wanted.grid.cols)
    throw Error("a policy wants a grid of " + std::to_string(wanted.grid.rows) + " x " +
                std::to_string(wanted.grid.cols) + ", but this model's crops are squares");
  ImageProcessor& p = processors.image_processor;
  const auto scaled = [&](int pixels) {
    return static_cast<int>((pixels * wanted.grid.rows + own.crop_grid / 2) / own.crop_grid);
  };
  processors.crop_grid = wanted.grid.rows;
  if (p.shortest_edge) p.shortest_edge = scaled(*p.shortest_edge);
  p.size = {scaled(p.size.height), scaled(p.size.width)};
  p.crop_size = {scaled(p.crop_size.height), scaled(p.crop_size.width)};
  if (!p.grid_pinpoints.empty()) {
    processors.has_tiles = wanted.tiling.has_value();
    const GridSize tiles = wanted.tiling.value_or(GridSize{1, 1});
    p.grid_pinpoints = {
        {static_cast<int>(tiles.rows) * p.crop_size.height, static_cast<int>(tiles.cols) * p.crop_size.width}};
  }
  return std::make_shared<const PictureProcessors>(std::move(processors));
}

// Three-part ids (time, height, width). Text counts on in all three; a picture has one time, its rows and columns count
// from there, and what follows goes on behind the longer side.
PromptPositions mrope_positions(const PromptLayout& layout) {
  const int64_t n = layout.segments.empty() ? 0 : layout.segments.back().end;
  PromptPositions positions{at::empty({3, n}, at::kLong), 0};
  int64_t* time = positions.ids.data_ptr<int64_t>();
  int64_t *height = time + n, *width = height + n;
  for (const Segment& s : layout.segments) {
    const bool is_text = s.kind == Segment::Kind::kText;
    for (int64_t t = s.begin; t < s.end; ++t) {
      const int64_t i = t - s.begin;
      time[t] = positions.next + (is_text ? i : 0);
      height[t] = positions.next + (is_text ? i : i / s.grid.cols);
      width[t] = positions.next + (is_text ? i : i % s.grid.cols);
    }
    positions.next += is_text ? s.end - s.begin : std::max(s.grid.rows, s.grid.cols);
  }
  return positions;
}

}  // namespace

ImagePlan plan_image(const LoadedModel& model, int width, int height, const PruningPolicy* policy) {
  const VisionConfig& vision = model.config.vision;
  const auto own = std::make_shared<const PictureProcessors>(PictureProcessors{
      model.image_processor, model.qwen_image_processor, model.config.family == Family::kQwen25Vl ? 0 : vision.grid()});
  ImagePlan plan = plan_with(model, own, width, height);
  if (!policy) return plan;
  const ImageShape wanted = policy->wanted_shape(model.facts, plan.shape);
  if (wanted.grid == plan.shape.grid && wanted.tiling == plan.shape.tiling) return plan;
  return plan_with(model, smaller(*own, model, wanted), width, height);
}

at::Tensor tower_rows(std::span<const ImagePlan> plans) {
  std::vector<at::Tensor> rows;
  bool as_they_come = true;
  int64_t begin = 0;
  for (const ImagePlan& plan : plans) {
    as_they_come &= !plan.tower_row.defined();
    rows.push_back(plan.tower_row.defined() ? plan.tower_row + begin
                                            : at::arange(begin, begin + plan.num_tower_rows, at::kLong));
    begin += plan.num_tower_rows;
  }
  return as_they_come ? at::Tensor() : at::cat(rows);
}

PromptPositions prompt_positions(const ModelConfig& config, const PromptLayout& layout) {
  if (!config.decoder.mrope_section.empty()) return mrope_positions(layout);
  const int64_t n = layout.segments.empty() ? 0 : layout.segments.back().end;
  return {at::arange(n, at::kLong), n};
}

}  // namespace espalier
