// SPDX-License-Identifier: Apache-2.0
#include "families/image_plan.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>

#include <algorithm>

namespace espalier {

void ImagePlan::add_patches(int crop, GridSize grid, GridSize origin) {
  if (grid.rows * grid.cols == 0) return;
  Segment s;
  s.kind = Segment::Kind::kPatches;
  s.begin = num_tokens();
  s.end = s.begin + grid.rows * grid.cols;
  s.crop = crop;
  s.grid = grid;
  s.origin = origin;
  segments.push_back(s);
}

void ImagePlan::add_row_break() {
  Segment s;
  s.kind = Segment::Kind::kRowBreak;
  s.begin = num_tokens();
  s.end = s.begin + 1;
  segments.push_back(s);
}

void ImagePlan::set_tower_rows(int64_t crops) {
  const GridSize whole = shape.grid;
  num_tower_rows = crops * whole.rows * whole.cols;
  std::vector<int64_t> rows;
  for (const Segment& s : segments)
    for (int64_t t = 0; s.kind == Segment::Kind::kPatches && t < s.end - s.begin; ++t)
      rows.push_back((s.crop * whole.rows + s.origin.rows + t / s.grid.cols) * whole.cols + s.origin.cols +
                     t % s.grid.cols);
  bool as_they_come = std::ssize(rows) == num_tower_rows;
  for (int64_t i = 0; as_they_come && i < std::ssize(rows); ++i) as_they_come = rows[i] == i;
  if (as_they_come) return;
  tower_row = at::empty({std::ssize(rows)}, at::kLong);
  std::ranges::copy(rows, tower_row.data_ptr<int64_t>());
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

}  // namespace espalier
