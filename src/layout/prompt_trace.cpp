// SPDX-License-Identifier: Apache-2.0
#include "layout/prompt_trace.h"

namespace espalier {

namespace {

TokenTrace::Kind kind_of(Segment::Kind kind) {
  switch (kind) {
    case Segment::Kind::kPatches:
      return TokenTrace::Kind::kPatch;
    case Segment::Kind::kRowBreak:
      return TokenTrace::Kind::kRowBreak;
    case Segment::Kind::kText:
      break;
  }
  return TokenTrace::Kind::kText;
}

}  // namespace

std::vector<std::vector<int64_t>> position_ids(const at::Tensor& position_id) {
  const at::Tensor host = position_id.cpu().contiguous();
  const int64_t n = host.size(-1);
  std::vector<std::vector<int64_t>> parts;
  for (const int64_t* part = host.const_data_ptr<int64_t>(); std::ssize(parts) < (host.dim() == 2 ? host.size(0) : 1);
       part += n)
    parts.emplace_back(part, part + n);
  return parts;
}

PromptTrace trace_of(const PromptLayout& layout) {
  PromptTrace trace{.query_example = layout.query_example,
                    .pictures = {},
                    .tokens = {},
                    .position_id = position_ids(layout.position_id)};
  for (const ImageShape& shape : layout.images) {
    const GridSize tiling = shape.tiling.value_or(GridSize{});
    trace.pictures.push_back({shape.grid.rows, shape.grid.cols, tiling.rows, tiling.cols});
  }
  for (const Segment& s : layout.segments)
    for (int64_t t = s.begin; t < s.end; ++t) {
      TokenTrace& token = trace.tokens.emplace_back();
      token.kind = kind_of(s.kind);
      token.example = s.example;
      if (s.kind == Segment::Kind::kText) continue;
      token.image = s.image;
      if (s.kind != Segment::Kind::kPatches) continue;
      token.crop = s.crop;
      token.row = s.origin.rows + (t - s.begin) / s.grid.cols;
      token.column = s.origin.cols + (t - s.begin) % s.grid.cols;
      token.box = layout.pixel_box(t);
    }
  return trace;
}

}  // namespace espalier
