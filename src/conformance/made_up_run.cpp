// SPDX-License-Identifier: Apache-2.0
#include "conformance/made_up_run.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/argsort.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>

#include <limits>
#include <utility>

#include "layout/cut.h"

namespace espalier {

namespace {

class LayoutWriter {
 public:
  void text(int64_t length, int example) {
    Segment segment;
    segment.example = example;
    add(segment, length);
  }
  void patches(int image, int crop, GridSize grid, GridSize origin) {
    Segment segment;
    segment.kind = Segment::Kind::kPatches;
    segment.image = segment.example = image;
    segment.crop = crop;
    segment.grid = grid;
    segment.origin = origin;
    add(segment, grid.rows * grid.cols);
  }
  void row_break(int image) {
    Segment segment;
    segment.kind = Segment::Kind::kRowBreak;
    segment.image = segment.example = image;
    add(segment, 1);
  }
  void image(GridSize grid, bool has_tiles) {
    const int number = static_cast<int>(layout.images.size());
    ImageShape shape;
    shape.grid = grid;
    if (has_tiles) shape.tiling = GridSize{1, 2};
    layout.images.push_back(shape);
    patches(number, 0, grid, {0, 0});
    if (!has_tiles) return;
    for (int64_t row = 0; row < grid.rows; ++row) {
      for (const int tile : {1, 2}) patches(number, tile, {1, grid.cols}, {row, 0});
      row_break(number);
    }
  }

  PromptLayout layout;

 private:
  void add(Segment segment, int64_t length) {
    segment.begin = end_;
    segment.end = end_ += length;
    layout.segments.push_back(segment);
  }
  int64_t end_ = 0;
};

PromptLayout layout_of(const MadeUpPrompt& prompt, at::Device device) {
  LayoutWriter writer;
  writer.text(MadeUpPrompt::kSystemTokens, -1);
  for (size_t i = 0; i < prompt.images.size(); ++i) {
    writer.image(prompt.images[i], prompt.has_tiles);
    writer.text(MadeUpPrompt::kTextTokens, static_cast<int>(i));
  }
  if (prompt.images.empty()) writer.text(MadeUpPrompt::kTextTokens, 0);
  PromptLayout& layout = writer.layout;
  layout.query_example = prompt.images.empty() ? 0 : static_cast<int>(prompt.images.size()) - 1;
  finish_prompt_layout(layout, device);
  for (const int64_t t : prompt.pinned) {
    layout.pinned[t] = true;
    ++layout.pinned_per_image[layout.image[t].item<int64_t>()];
  }
  return std::move(layout);
}

// Attention that rows pay to columns up to themselves.
at::Tensor causal(const at::Tensor& logits) {
  const at::Tensor later = logits.new_ones({logits.size(-1), logits.size(-1)}).triu(1) > 0;
  return logits.masked_fill(later, -std::numeric_limits<double>::infinity()).softmax(-1);
}

}  // namespace

MadeUpRun make_up_run(const ModelFacts& model, const MadeUpPrompt& prompt, uint64_t seed, at::Device device) {
  MadeUpRun run{.prompt = std::make_shared<const PromptLayout>(layout_of(prompt, device)), .arrays = {}};
  const int64_t n = run.prompt->num_tokens, m = run.prompt->num_image_tokens(false);
  const int64_t crops = static_cast<int64_t>(prompt.images.size()) * (prompt.has_tiles ? 3 : 1);
  at::Generator random = at::detail::createCPUGenerator(seed);
  const auto draw = [&](at::IntArrayRef sizes) { return at::randn(sizes, random, at::TensorOptions(at::kFloat)); };
  const auto put = [&](const std::string& name, const at::Tensor& array) { run.arrays[name] = array.to(device); };
  for (int layer = 0; layer <= model.num_layers; ++layer) {
    const std::string at = "." + std::to_string(layer);
    put("hidden" + at, draw({n, model.hidden_size}));
    put("final_norm" + at, draw({n, model.hidden_size}));
    put("query" + at, draw({model.num_heads, n, model.head_dim}));
    put("key" + at, draw({model.num_kv_heads, n, model.head_dim}));
    put("attention" + at, causal(draw({model.num_heads, n, n})));
  }
  for (int layer = 0; layer < model.vision_layers; ++layer) {
    const std::string at = "." + std::to_string(layer);
    put("vision.key" + at, draw({m, model.vision_hidden_size}));
    put("vision.cls_attention" + at, draw({model.vision_heads, m}).softmax(-1));
    put("vision.cls_attention_joint" + at, draw({m}).softmax(-1));
  }
  put("vision.output", draw({m, model.vision_hidden_size}));
  put("vision.cls_output", draw({crops, model.vision_hidden_size}));
  put("clip.image", draw({m, model.vision_hidden_size}));
  put("clip.text", draw({2, model.vision_hidden_size}));
  return run;
}

MadeUpRun moved(const MadeUpRun& run, const std::vector<int64_t>& where) {
  const at::Tensor from = at::argsort(at::tensor(where, at::kLong));  // token that now stands at i
  const auto is_patch = run.prompt->kind == static_cast<int64_t>(Segment::Kind::kPatches);
  // Patches among themselves: the order in which they now come.
  const at::Tensor patch_number = is_patch.to(at::kLong).cumsum(0) - 1;
  const at::Tensor patches = patch_number.index_select(0, from.masked_select(is_patch.index_select(0, from)));
  const at::Tensor images = run.prompt->image.index_select(0, from.masked_select(is_patch.index_select(0, from)));
  MadeUpRun result{.prompt = run.prompt, .arrays = {}};
  for (const auto& [name, array] : run.arrays) {
    at::Tensor& to = result.arrays[name];
    if (name.starts_with("hidden.") || name.starts_with("final_norm.")) {
      to = array.index_select(0, from);
    } else if (name.starts_with("query.") || name.starts_with("key.")) {
      to = array.index_select(1, from);
    } else if (name.starts_with("attention.")) {
      to = array.index_select(1, from).index_select(2, from);
    } else if (name.starts_with("vision.cls_attention.")) {
      to = array.index_select(1, patches);
    } else if (name == "vision.cls_output") {
      // One crop per image: the images in the order in which their patches now come.
      std::vector<int64_t> order;
      for (int64_t i = 0; i < images.size(0); ++i)
        if (const int64_t image = images[i].item<int64_t>(); order.empty() || order.back() != image)
          order.push_back(image);
      to = array.index_select(0, at::tensor(order, at::kLong));
    } else if (name == "clip.text") {
      to = array;
    } else {
      to = array.index_select(0, patches);
    }
  }
  return result;
}

}  // namespace espalier
