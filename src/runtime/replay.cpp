// SPDX-License-Identifier: Apache-2.0
#include "runtime/replay.h"

#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <vector>

#include "espalier/error.h"
#include "io/output_file.h"
#include "io/safetensors.h"
#include "runtime/layout_json.h"
#include "runtime/points_json.h"
#include "runtime/policy_walk.h"
#include "runtime/recorded_signals.h"

namespace espalier {

void replay(const std::string& spec, const ReplayFiles& files) {
  const c10::InferenceMode no_gradients;
  const PolicyPtr policy = make_policy(spec);
  RecordedLayout layout = read_layout(files.layout);
  const RecordedSignals recorded(files.signals, *layout.prompt);
  recorded.complete(layout.model);
  PolicyWalk walk(policy, layout.model, layout.prompt);
  while (const ActPoint* point = walk.next()) {
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
    if (const auto vectors = walk.merged(i)) {
      const std::string name = "merged." + std::to_string(i);
      merged.push_back(vectors->vectors.to(at::kFloat).contiguous());
      tensors.push_back({name, Dtype::kF32, merged.back().sizes().vec(), merged.back().data_ptr()});
      entry["merged"] = name;
      const at::Tensor source = vectors->source.contiguous();
      entry["merged_source"] =
          std::vector<int64_t>(source.const_data_ptr<int64_t>(), source.const_data_ptr<int64_t>() + source.numel());
    }
    result["points"].push_back(std::move(entry));
  }
  result["kept"] = walk.kept_sources();
  if (!tensors.empty()) write_safetensors(std::filesystem::path(files.out).replace_extension(".safetensors"), tensors);
  OutputFile out(files.out);
  out.write(result.dump() + "\n");
  out.commit();
}

}  // namespace espalier
