// SPDX-License-Identifier: Apache-2.0
#include "conformance/made_up_run.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/argsort.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <limits>

#include "layout/layout_builder.h"

namespace espalier {

namespace {

std::shared_ptr<const PromptLayout> layout_of(const MadeUpPrompt& prompt, at::Device device) {
  LayoutBuilder builder;
  builder.text(MadeUpPrompt::kSystemTokens, -1);
  for (int i = 0; i < static_cast<int>(prompt.images.size()); ++i) {
    const GridSize grid = prompt.images[static_cast<size_t>(i)];
    if (prompt.has_tiles)
      builder.tiled_image(grid, {1, 2}, i);
    else
      builder.image(grid, i);
    builder.text(MadeUpPrompt::kTextTokens, i);
  }
  if (prompt.images.empty()) builder.text(MadeUpPrompt::kTextTokens, 0);
  return builder.pin(prompt.pinned).build(std::max(0, static_cast<int>(prompt.images.size()) - 1), device);
}

// Attention that rows pay to columns up to themselves.
at::Tensor causal(const at::Tensor& logits) {
  const at::Tensor later = logits.new_ones({logits.size(-1), logits.size(-1)}).triu(1) > 0;
  return logits.masked_fill(later, -std::numeric_limits<double>::infinity()).softmax(-1);
}

}  // namespace

MadeUpRun make_up_run(const ModelFacts& model, const MadeUpPrompt& prompt, uint64_t seed, at::Device device) {
  MadeUpRun run{.prompt = layout_of(prompt, device), .arrays = {}};
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
    const int64_t all = n + MadeUpRun::kGenerated;
    put("generated.attention" + at, causal(draw({model.num_heads, all, all})).slice(1, n).contiguous());
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

MadeUpRun redrawn(const MadeUpRun& run, const ModelFacts& model, const MadeUpPrompt& prompt, uint64_t seed,
                  const std::vector<bool>& is_outside) {
  MadeUpRun other = make_up_run(model, prompt, seed);
  std::vector<int64_t> inside, patches, crops;
  int64_t patch = 0;
  for (const Segment& s : run.prompt->segments)
    for (int64_t t = s.begin; t < s.end; ++t) {
      const bool is_patch = s.kind == Segment::Kind::kPatches;
      if (!is_outside[static_cast<size_t>(t)]) {
        inside.push_back(t);
        if (is_patch) patches.push_back(patch);
      }
      patch += is_patch ? 1 : 0;
    }
  for (const CropFacts& crop : crops_of(*run.prompt))
    for (const Segment& s : run.prompt->segments)
      if (s.image == crop.image && s.crop == crop.crop && !is_outside[static_cast<size_t>(s.begin)]) {
        crops.push_back(crop.class_row);
        break;
      }
  const auto index = [](const std::vector<int64_t>& list) { return at::tensor(list, at::kLong); };
  // Along `dimension`, the rows of `list` are the old ones.
  const auto keep = [](at::Tensor& to, const at::Tensor& from, int64_t dimension, const at::Tensor& list) {
    to = to.index_copy(dimension, list, from.index_select(dimension, list));
  };
  for (auto& [name, array] : other.arrays) {
    const at::Tensor& old = run.arrays.at(name);
    if (name.starts_with("hidden.") || name.starts_with("final_norm.")) {
      keep(array, old, 0, index(inside));
    } else if (name.starts_with("query.") || name.starts_with("key.")) {
      keep(array, old, 1, index(inside));
    } else if (name.starts_with("attention.")) {
      const at::Tensor own = index(inside);
      at::Tensor rows = array.index_select(1, own);
      keep(rows, old.index_select(1, own), 2, own);
      array = array.index_copy(1, own, rows);
    } else if (name.starts_with("vision.cls_attention.")) {
      keep(array, old, 1, index(patches));
    } else if (name == "vision.cls_output") {
      keep(array, old, 0, index(crops));
    } else if (name != "clip.text" && !name.starts_with("generated.")) {
      keep(array, old, 0, index(patches));
    }
  }
  return other;
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
    } else if (name.starts_with("generated.attention.")) {
      to = at::cat({array.index_select(2, from), array.slice(2, from.size(0))}, 2);
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
