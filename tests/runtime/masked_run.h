// SPDX-License-Identifier: Apache-2.0
// The oracle of the whole runtime: with positions kept, dropping tokens at a point equals masking their columns from
// there on, in prefill and in every decoded token. The masked run is the float64 reference of tests/support, which
// knows no policies, caches or packing.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <utility>
#include <vector>

#include "espalier/prompt.h"
#include "espalier/pruning.h"
#include "runtime/loaded_model.h"
#include "runtime/sequence.h"

namespace espalier::test {

// Keeps a random part of what is alive at each of its points; at a cache each KV head its own.
class RandomKeep : public PruningPolicy {
 public:
  RandomKeep(std::vector<ActPoint> points, double share, uint32_t seed, int num_kv_heads,
             Positions positions = Positions::kKeep)
      : points_(std::move(points)), share_(share), seed_(seed), num_kv_heads_(num_kv_heads), positions_(positions) {}

  std::string spec() const override { return "random_keep"; }
  CommonOptions common() const override { return {.positions = positions_}; }
  std::vector<Step> steps(const ModelFacts&, const PromptLayout&) const override;

 private:
  Verdict decide(const ActPoint& point, const TokenLayout& layout) const;

  std::vector<ActPoint> points_;
  double share_;
  uint32_t seed_;
  int num_kv_heads_;
  Positions positions_;
};

// At the cache of each of its layers, again with each `every`-th generated token, each KV head keeps others: drawn
// anew, of another number each time, of all tokens or of those whose rows were not freed.
class RandomKeepAgain : public PruningPolicy {
 public:
  RandomKeepAgain(std::vector<int> layers, int every, bool revives, uint32_t seed, int num_kv_heads)
      : layers_(std::move(layers)), every_(every), revives_(revives), seed_(seed), num_kv_heads_(num_kv_heads) {}

  std::string spec() const override { return "random_keep_again"; }
  std::vector<Step> steps(const ModelFacts&, const PromptLayout&) const override;

 private:
  std::vector<int> layers_;
  int every_;
  bool revives_;
  uint32_t seed_;
  int num_kv_heads_;
};

// Every site at every layer alone, then several sites in one run. `num_layers` of 8.
std::vector<std::vector<ActPoint>> point_lists();
std::string name_of_points(const std::vector<ActPoint>& points);

// Which keys are there from which layer on, read off the points a run went through.
struct Dropped {
  std::vector<int> first_gone;  // [token]: first layer whose attention lacks it
  // (layer, KV head) -> with which generated token, 0: behind prefill -> tokens that decoding does not see from there
  // on.
  std::map<std::pair<int, int>, std::map<int64_t, std::vector<int64_t>>> from_cache;
};

// Prompt and answer as one masked sequence, float64 logits of every row. `hidden` is the decoder's unpruned input,
// position_id [n] or [3, n] that of `hidden`; the answer's positions count up from `next_position`.
at::Tensor masked_logits(const LoadedModel& model, const at::Tensor& hidden, const at::Tensor& position_id,
                         int64_t next_position, const Dropped& dropped, const std::vector<int32_t>& answer);

struct Answered {
  std::vector<int32_t> answer;
  std::vector<at::Tensor> logits;  // one row per step, each [vocab]
};

Sequence sequence_for(const LoadedModel& model, const Prompt& prompt, PolicyPtr policy);
std::vector<Answered> run_packed(const LoadedModel& model, std::vector<Sequence>& sequences, int new_tokens);
at::Tensor unpruned_hidden(const LoadedModel& model, const Prompt& prompt);

// 5e-5 of the logits' rms, at the last prompt token and at each decoded one.
void expect_equals_masked_run(const LoadedModel& model, const Prompt& prompt, const Sequence& sequence,
                              const Answered& run);

}  // namespace espalier::test
