// SPDX-License-Identifier: Apache-2.0
#include "recording/recorded_signals.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "base/safetensors.h"
#include "espalier/error.h"
#include "espalier/ops.h"
#include "layout/generated_rows.h"

namespace espalier {

namespace {

at::Tensor copy_of(const TensorView& view) {
  at::Tensor t = at::empty(view.shape, at::kFloat);
  if (!view.bytes.empty()) std::memcpy(t.data_ptr(), view.bytes.data(), view.bytes.size());
  return t;
}

// The shape that an array has, -1 where any size will do; empty for a name that means
// nothing here.
std::vector<int64_t> expected_shape(const std::string& name, const PromptLayout& prompt, int64_t generated) {
  const int64_t n = prompt.num_tokens, m = prompt.num_image_tokens(false);
  const auto is = [&](const char* family) { return name.starts_with(family); };
  if (is("hidden.") || is("final_norm.")) return {n, -1};
  if (is("attention.")) return {-1, n, n};
  if (is("generated.attention.")) return {-1, generated, n + generated};
  if (is("query.") || is("key.")) return {-1, n, -1};
  if (is("vision.cls_attention.")) return {-1, m};
  if (is("vision.cls_attention_joint.")) return {m};
  if (is("vision.key.") || name == "vision.output" || name == "clip.image") return {m, -1};
  if (name == "vision.cls_output" || name == "clip.text") return {-1, -1};
  return {};
}

bool fits(const std::vector<int64_t>& shape, const std::vector<int64_t>& expected) {
  return std::ranges::equal(shape, expected, [](int64_t size, int64_t wanted) { return wanted < 0 || size == wanted; });
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text;
  for (const int64_t size : shape)
    text += (text.empty() ? "" : ", ") + (size < 0 ? std::string("any") : std::to_string(size));
  return "[" + text + "]";
}

void check_shape(const std::string& where, const std::vector<int64_t>& shape, const std::vector<int64_t>& expected) {
  if (!expected.empty() && !fits(shape, expected))
    throw Error(where + ": expected shape " + shape_text(expected) + ", got " + shape_text(shape));
}

at::Tensor reduce_heads(const at::Tensor& per_head, AttentionProbe::Heads heads) {  // [h, ...]
  switch (heads) {
    case AttentionProbe::Heads::kMax:
      return per_head.amax(0);
    case AttentionProbe::Heads::kEach:
      return per_head;
    case AttentionProbe::Heads::kMean:
    case AttentionProbe::Heads::kJoint:
      break;
  }
  return per_head.mean(0);
}

}  // namespace

RecordedSignals::RecordedSignals(const std::filesystem::path& file, const PromptLayout& prompt, int64_t num_generated)
    : file_(file.string()) {
  const SafetensorsFile recorded = SafetensorsFile::open(file);
  for (const auto& [name, view] : recorded.tensors()) {
    if (view.dtype != Dtype::kF32)
      throw Error(file_ + ": " + name + ": expected F32, got " + std::string(name_of(view.dtype)));
    check_shape(file_ + ": " + name, view.shape, expected_shape(name, prompt, num_generated));
    arrays_.emplace(name, copy_of(view));
  }
}

RecordedSignals::RecordedSignals(std::map<std::string, at::Tensor> arrays, std::string source,
                                 const PromptLayout& prompt, int64_t num_generated)
    : RecordedSignals(std::move(arrays), std::move(source)) {
  for (const auto& [name, array] : arrays_) {
    const std::string where = file_ + ": " + name;
    if (!array.defined() || array.scalar_type() != at::kFloat || !array.is_cpu())
      throw Error(where + ": expected float32 on the CPU, got " + (array.defined() ? array.toString() : "nothing"));
    check_shape(where, array.sizes().vec(), expected_shape(name, prompt, num_generated));
  }
}

void RecordedSignals::complete(ModelFacts& model) const {
  for (const auto& [name, t] : arrays_) {
    if (name.starts_with("hidden.")) model.hidden_size = t.size(1);
    if (name.starts_with("attention.") || name.starts_with("query.")) model.num_heads = static_cast<int>(t.size(0));
    if (name.starts_with("key.")) {
      model.num_kv_heads = static_cast<int>(t.size(0));
      model.head_dim = t.size(2);
    }
    if (name.starts_with("vision.cls")) model.has_class_token = true;
    if (name.starts_with("vision.cls_attention.")) model.vision_heads = static_cast<int>(t.size(0));
    if (name == "vision.output") model.vision_hidden_size = t.size(1);
    if (name == "clip.image") model.has_text_tower = true;
  }
  if (model.num_kv_heads == 0) model.num_kv_heads = model.num_heads;
}

const at::Tensor& RecordedSignals::array(const std::string& name) const {
  const auto found = arrays_.find(name);
  if (found == arrays_.end()) throw Error(file_ + ": the policy needs " + name + ", which was not recorded");
  return found->second;
}

at::Tensor RecordedSignals::attention(int layer, const at::Tensor& rows, const at::Tensor& columns) const {
  return array("attention." + std::to_string(layer)).index_select(1, rows).index_select(2, columns);
}

// The residual stream at the point: what entered the layer before which the policy acts.
at::Tensor RecordedSignals::state(const std::string& family, const ActPoint& point, const TokenLayout& layout) const {
  if (point.site == Site::kAfterAttention || point.site == Site::kCache)
    throw Error(file_ + ": the state at " + std::string(name_of(point.site)) + " is not among recorded signals");
  const int layer = point.site == Site::kBeforeLayer ? point.layer : 0;
  return array(family + "." + std::to_string(layer)).index_select(0, layout.source_index);
}

at::Tensor RecordedSignals::probe(const AttentionProbe& p, const TokenLayout& layout) const {
  const std::string layer = std::to_string(p.layer);
  if (p.rows == AttentionProbe::Rows::kClass)
    return p.heads == AttentionProbe::Heads::kJoint ? array("vision.cls_attention_joint." + layer)
                                                    : reduce_heads(array("vision.cls_attention." + layer), p.heads);
  std::vector<AttentionProbe::Group> groups = p.groups;
  if (reads_newest(p))
    groups = {{at::full({1}, layout.num_tokens() - 1, layout.image_tokens.options()), newest_columns(p, layout)}};
  std::vector<at::Tensor> results;
  for (const auto& group : groups) {
    const at::Tensor columns = group.columns.defined() ? group.columns : layout.image_tokens;
    const at::Tensor a = attention(p.layer, layout.source_index.index_select(0, group.rows),
                                   layout.source_index.index_select(0, columns));
    at::Tensor reduced = reduce_heads(a, p.heads);  // [r, c] or [h, r, c]
    if (p.reduce_rows) reduced = group.rows.size(0) == 0 ? reduced.sum(-2) : reduced.mean(-2);
    results.push_back(reduced);
  }
  return results.size() == 1 ? results[0] : at::cat(results, -1);
}

at::Tensor RecordedSignals::growth(const AttentionGrowth& g, const ActPoint& point, const TokenLayout& layout) const {
  const at::Tensor last = layout.source_index.slice(0, layout.num_tokens() - 1);
  const at::Tensor columns = layout.source_index.index_select(0, layout.image_tokens);
  const at::Tensor difference =
      (attention(g.upper, last, columns) - attention(g.lower, last, columns)).squeeze(1);  // [h, m]
  at::Tensor score = g.relu_per_head ? difference.clamp_min(0).mean(0) : difference.mean(0).clamp_min(0);
  if (!g.pool.defined()) return score;
  const at::Tensor hidden = state("hidden", point, layout);
  const at::Tensor direction = hidden.index_select(0, g.pool).mean(0, true);
  return score + g.cosine_weight * ops::cosine_score(hidden, direction, layout.image_tokens).squeeze(0);
}

at::Tensor RecordedSignals::tap(const Tap& t, const ActPoint& point, const TokenLayout& layout) const {
  switch (t.what) {
    case Tap::What::kHidden:
      return state("hidden", point, layout);
    case Tap::What::kFinalNorm:
      return state("final_norm", point, layout);
    case Tap::What::kKey:
      return array("key." + std::to_string(t.layer)).index_select(1, layout.source_index).transpose(0, 1);
    case Tap::What::kVisionOutput:
      return array("vision.output");
    case Tap::What::kVisionClass:
      return array("vision.cls_output");
    case Tap::What::kVisionKey:
      return array("vision.key." + std::to_string(t.layer));
    case Tap::What::kClipImage:
      return array("clip.image");
    case Tap::What::kClipText:
      return array("clip.text");
  }
  return {};
}

void RecordedSignals::check_places(const TokenLayout& layout, const ActPoint& point) const {
  if (layout.num_tokens() > 0 && layout.source_index.min().item<int64_t>() < 0)
    throw Error(file_ + ": merged tokens without a place of their own reach " + std::string(name_of(point.site)) +
                ", and nothing is recorded of them");
}

at::Tensor RecordedSignals::generated_row(int layer, const TokenLayout& layout, int64_t generated) const {
  check_places(layout, {Site::kCache, layer});
  const at::Tensor row = array("generated.attention." + std::to_string(layer)).select(1, generated - 1);
  const int64_t n = layout.prompt->num_tokens;
  return at::cat({row.index_select(1, layout.source_index), row.slice(1, n, n + generated)}, 1);
}

at::Tensor RecordedSignals::compute(const Signal& signal, const ActPoint& point, const TokenLayout& layout) const {
  check_places(layout, point);
  if (const auto* p = std::get_if<AttentionProbe>(&signal)) return probe(*p, layout);
  if (const auto* g = std::get_if<AttentionGrowth>(&signal)) return growth(*g, point, layout);
  return tap(std::get<Tap>(signal), point, layout);
}

}  // namespace espalier
