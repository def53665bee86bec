// SPDX-License-Identifier: Apache-2.0
#include "recording/replay.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "base/json_schema.h"
#include "base/output_file.h"
#include "base/safetensors.h"
#include "espalier/error.h"
#include "espalier/recording.h"
#include "layout/layout_json.h"
#include "layout/points_json.h"
#include "layout/policy_walk.h"
#include "recording/recorded_answer.h"
#include "recording/recorded_signals.h"
#include "runtime/result_json.h"

namespace espalier {

namespace {

// The vectors of all image tokens that leave point i: those that came with it, and the recorded ones of the rest.
at::Tensor merged_vectors(const RecordedSignals& recorded, const PolicyWalk::Merged& merged, const ActPoint& point) {
  const int64_t n = merged.before.num_tokens();
  const at::Tensor is_new = merged.index >= n;
  at::Tensor vectors = at::zeros({merged.index.size(0), merged.vectors.size(1)}, at::kFloat);
  vectors.index_copy_(0, is_new.nonzero().squeeze(1),
                      merged.vectors.to(at::kFloat).index_select(0, merged.index.masked_select(is_new) - n));
  const at::Tensor stays = is_new.logical_not().nonzero().squeeze(1);
  if (stays.size(0) == 0) return vectors;
  const bool is_vision = point.site == Site::kVisionOutput;
  const Tap tap{.what = is_vision ? Tap::What::kVisionOutput : Tap::What::kHidden};
  at::Tensor row = merged.index.index_select(0, stays);
  if (is_vision)  // its rows are patches
    row = ((merged.before.kind == static_cast<int64_t>(Segment::Kind::kPatches)).to(at::kLong).cumsum(0) - 1)
              .index_select(0, row);
  return vectors.index_copy_(0, stays, recorded.compute(tap, point, merged.before).index_select(0, row));
}

std::vector<int64_t> to_vector(const at::Tensor& t) {
  const at::Tensor host = t.contiguous();
  return {host.const_data_ptr<int64_t>(), host.const_data_ptr<int64_t>() + host.numel()};
}

}  // namespace

namespace {

// Of the policy as the recorded model runs it.
Replayed replay(const PolicyPtr& policy, RecordedLayout layout, const RecordedSignals& recorded) {
  const c10::InferenceMode no_gradients;
  for (const ImageShape& shape : layout.prompt->images) {
    const ImageShape wanted = policy->wanted_shape(layout.model, shape);
    if (wanted.grid != shape.grid || wanted.tiling != shape.tiling)
      throw Error(policy->spec() + ": it changes pictures before the vision tower; a recording begins after that");
  }
  recorded.complete(layout.model);
  PolicyWalk walk(policy, layout.model, layout.prompt);
  std::vector<ActPoint> acted;
  while (const ActPoint* point = walk.next()) {
    acted.push_back(*point);
    std::vector<at::Tensor> signals;
    for (const Signal& signal : walk.needs()) signals.push_back(recorded.compute(signal, *point, walk.layout()));
    walk.act(signals);
  }
  RecordedAnswer answer(walk, recorded, layout.num_generated);
  while (answer.step()) {
  }
  Replayed replayed;
  const std::vector<PointTrace> points = walk.trace(/*in_full=*/true);
  for (size_t i = 0; i < points.size(); ++i) {
    ReplayedPoint& point = replayed.points.emplace_back(ReplayedPoint{.trace = points[i]});
    const auto merged = walk.merged(i);
    if (!merged) continue;  // nor while decoding, behind what `acted` has
    point.merged = merged_vectors(recorded, *merged, acted[i]);
    point.merged_source = to_vector(merged->source);
    point.merged_position_from = to_vector(merged->position_from);
  }
  replayed.kept = walk.kept_sources();
  return replayed;
}

}  // namespace

Replayed replay(const PolicyPtr& policy, const Recording& recording) {
  RecordedLayout layout = parse_layout(recording.layout, "layout");
  const RecordedSignals recorded(recording.signals, "signals", *layout.prompt, layout.num_generated);
  const PolicyPtr set = for_model(policy, layout.model);
  return replay(set, std::move(layout), recorded);
}

void replay(const PolicyPtr& asked, const ReplayFiles& files) {
  const std::filesystem::path beside = std::filesystem::path(files.out).replace_extension(".safetensors");
  check_outputs({files.signals, files.layout}, {files.out, beside});
  RecordedLayout layout = read_layout(files.layout);
  const PolicyPtr policy = for_model(asked, layout.model);
  const RecordedSignals recorded(files.signals, *layout.prompt, layout.num_generated);
  const Replayed replayed = replay(policy, std::move(layout), recorded);
  // New vectors go to a sibling file, one tensor a point that has some.
  std::vector<TensorToWrite> tensors;
  nlohmann::ordered_json result = {
      {"schema", kJsonSchema}, {"policy", policy->spec()}, {"points", nlohmann::ordered_json::array()}};
  for (size_t i = 0; i < replayed.points.size(); ++i) {
    const ReplayedPoint& point = replayed.points[i];
    nlohmann::ordered_json entry = to_json(point.trace);
    if (point.merged.defined()) {
      const std::string name = "merged." + std::to_string(i);
      tensors.push_back({name, Dtype::kF32, point.merged.sizes().vec(), point.merged.data_ptr()});
      entry["merged"] = name;
      entry["merged_source"] = point.merged_source;
      entry["merged_position_from"] = point.merged_position_from;
    }
    result["points"].push_back(std::move(entry));
  }
  result["kept"] = replayed.kept;
  OutputFile out(files.out);
  out.write(to_line(result) + "\n");
  if (tensors.empty()) return out.commit();
  OutputFile vectors(beside);
  write_safetensors(
      vectors, tensors,
      {{"format", "espalier.merged"}, {"schema", std::to_string(kJsonSchema)}, {"policy", policy->spec()}});
  commit({&vectors, &out});
}

}  // namespace espalier
