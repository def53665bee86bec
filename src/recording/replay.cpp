// SPDX-License-Identifier: Apache-2.0
#include "recording/replay.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/output_file.h"
#include "base/safetensors.h"
#include "espalier/error.h"
#include "layout/layout_json.h"
#include "layout/points_json.h"
#include "layout/policy_walk.h"
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

void replay(const std::string& spec, const ReplayFiles& files) {
  const c10::InferenceMode no_gradients;
  const std::filesystem::path beside = std::filesystem::path(files.out).replace_extension(".safetensors");
  check_outputs({files.signals, files.layout}, {files.out, beside});
  const PolicyPtr asked = make_policy(spec);
  RecordedLayout layout = read_layout(files.layout);
  const PolicyPtr policy = for_model(asked, layout.model);
  for (const ImageShape& shape : layout.prompt->images) {
    const ImageShape wanted = policy->wanted_shape(layout.model, shape);
    if (wanted.grid != shape.grid || wanted.tiling != shape.tiling)
      throw Error(policy->spec() + ": it changes pictures before the vision tower; a recording begins after that");
  }
  const RecordedSignals recorded(files.signals, *layout.prompt);
  recorded.complete(layout.model);
  PolicyWalk walk(policy, layout.model, layout.prompt);
  std::vector<ActPoint> acted;
  while (const ActPoint* point = walk.next()) {
    acted.push_back(*point);
    std::vector<at::Tensor> signals;
    for (const Signal& signal : walk.needs()) signals.push_back(recorded.compute(signal, *point, walk.layout()));
    walk.act(signals);
  }
  // New vectors go to a sibling file, one tensor a point that has some.
  std::vector<at::Tensor> merged;
  std::vector<TensorToWrite> tensors;
  nlohmann::ordered_json result = {{"policy", policy->spec()}, {"points", nlohmann::ordered_json::array()}};
  const std::vector<PointTrace> points = walk.trace(/*with_scores=*/true);
  for (size_t i = 0; i < points.size(); ++i) {
    nlohmann::ordered_json entry = to_json(points[i]);
    if (const auto of_point = walk.merged(i)) {
      const std::string name = "merged." + std::to_string(i);
      merged.push_back(merged_vectors(recorded, *of_point, acted[i]));
      tensors.push_back({name, Dtype::kF32, merged.back().sizes().vec(), merged.back().data_ptr()});
      entry["merged"] = name;
      entry["merged_source"] = to_vector(of_point->source);
      entry["merged_position_from"] = to_vector(of_point->position_from);
    }
    result["points"].push_back(std::move(entry));
  }
  result["kept"] = walk.kept_sources();
  OutputFile out(files.out);
  out.write(to_line(result) + "\n");
  if (tensors.empty()) return out.commit();
  OutputFile vectors(beside);
  write_safetensors(vectors, tensors);
  commit({&vectors, &out});
}

}  // namespace espalier
