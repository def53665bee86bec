// SPDX-License-Identifier: Apache-2.0
// What `espalier replay` reads: layouts, signals, policy specs, and the files that specs name. Policies are walked as
// replay walks them, without its output.
#include <c10/core/InferenceMode.h>

#include <array>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "espalier/pruning.h"
#include "layout/layout_json.h"
#include "layout/points_json.h"
#include "layout/policy_walk.h"
#include "recording/policy_files.h"
#include "recording/recorded_signals.h"
#include "tests/fuzz/scratch.h"
#include "tests/fuzz/targets.h"

namespace espalier::fuzz {

namespace {

// Two examples of 2 x 2 patches, the second with a row break, and a question.
const RecordedLayout& small_layout() {
  static const RecordedLayout layout = read_layout(source_folder() / "tests/fuzz/seeds/layout/two_examples.json");
  return layout;
}

void walk(const PolicyPtr& policy, const RecordedLayout& layout, const RecordedSignals& recorded) {
  const c10::InferenceMode no_gradients;
  ModelFacts model = layout.model;
  recorded.complete(model);
  PolicyWalk walk(policy, model, layout.prompt);
  while (const ActPoint* point = walk.next()) {
    std::vector<at::Tensor> signals;
    for (const Signal& signal : walk.needs()) signals.push_back(recorded.compute(signal, *point, walk.layout()));
    walk.act(signals);
  }
  for (const PointTrace& point : walk.trace(/*in_full=*/true)) static_cast<void>(to_json(point).dump());
  const std::vector<int64_t> kept = walk.kept_sources();
  for (const int64_t source : kept)
    expect(source >= -1 && source < layout.prompt->num_tokens, "what is kept are tokens of the prompt");
}

// What the decoder's layers told of it: the seed without the byte that chooses a policy.
const RecordedSignals& small_signals() {
  static const RecordedSignals signals = [] {
    std::ifstream seed(source_folder() / "tests/fuzz/seeds/signals/decoder", std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(seed), {}};
    return RecordedSignals(write_scratch("small.safetensors", std::string_view(bytes).substr(1)),
                           *small_layout().prompt);
  }();
  return signals;
}

const RecordedSignals& no_signals() {
  static const RecordedSignals none(std::map<std::string, at::Tensor>{}, "signals");
  return none;
}

}  // namespace

void run_layout(std::string_view layout_json) {
  const std::filesystem::path file = write_scratch("layout.json", layout_json);
  may_refuse([&] {
    const RecordedLayout layout = read_layout(file);
    const std::string written = layout_to_json(*layout.prompt, layout.model);
    const RecordedLayout again = read_layout(write_scratch("again.json", written));
    expect(layout_to_json(*again.prompt, again.model) == written, "a written layout is read as it was");
    for (const char* spec : {"uniform:keep_ratio=1/2", "random:num_kept=3,min_per_image=1,row_breaks=follow"})
      may_refuse([&] { walk(make_policy(spec), layout, no_signals()); });
  });
}

void run_signals(std::string_view input) {
  constexpr std::array kPolicies = {"catp:keep_ratio=1/2",
                                    "catp+:keep_ratio=1/2",
                                    "fastv:keep_ratio=1/2,layer=1",
                                    "divprune:keep_ratio=1/2",
                                    "visionzip:keep_ratio=1/2",
                                    "prumerge:keep_ratio=1/2",
                                    "sparsevlm:keep_ratio=1/2",
                                    "plphp",
                                    "cdpruner:keep_ratio=1/2",
                                    "scope:keep_ratio=1/2",
                                    "hiprune:keep_ratio=1/2",
                                    "dart:keep_ratio=1/2,layer=1",
                                    "pyramiddrop",
                                    "vispruner:keep_ratio=1/2",
                                    "m3:keep_ratio=1/4"};
  if (input.empty()) return;
  const std::filesystem::path file = write_scratch("signals.safetensors", input.substr(1));
  may_refuse([&] {
    const RecordedSignals recorded(file, *small_layout().prompt);
    walk(make_policy(kPolicies[static_cast<unsigned char>(input[0]) % kPolicies.size()]), small_layout(), recorded);
  });
}

void run_policy_spec(std::string_view spec) {
  may_refuse([&] {
    const PolicyPtr policy = make_policy(std::string(spec));
    expect(make_policy(policy->spec())->spec() == policy->spec(), "a policy's spec makes the same policy");
    walk(policy, small_layout(), small_signals());
  });
}

void run_recipe(std::string_view json) {
  const std::string file = write_scratch("recipe.json", json).string();
  const PolicyFilesOnDisk files;
  for (const char* spec : {"fitprune:recipe=", "vtw:recipe="})
    may_refuse([&] { walk(make_policy(spec + file, files), small_layout(), small_signals()); });
}

void run_atp_weights(std::string_view input) {
  const std::vector<std::string_view> parts = split(input, 2);
  write_scratch("atp.json", parts.front());
  const std::string file = write_scratch("atp.safetensors", parts.size() > 1 ? parts[1] : "").string();
  may_refuse([&] { walk(make_policy("atp:weights=" + file, PolicyFilesOnDisk()), small_layout(), small_signals()); });
}

void run_keepmask(std::string_view input) {
  const std::vector<std::string_view> parts = split(input, 2);
  const std::string file = write_scratch("kept.json", parts.front()).string();
  write_scratch("kept.safetensors", parts.size() > 1 ? parts[1] : "");
  for (const char* more : {"", ",row_breaks=pool"})
    may_refuse([&] {
      walk(make_policy("keepmask:file=" + file + more, PolicyFilesOnDisk()), small_layout(), small_signals());
    });
}

}  // namespace espalier::fuzz
