// SPDX-License-Identifier: Apache-2.0
// What the runtime hands to a policy, against the arrays that `record` wrote of the same run: probabilities of a full
// softmax, states and keys, gathered by source index and reduced here in float64. One policy asks for everything,
// unpruned and while it drops tokens.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <vector>

#include "espalier/pruning.h"
#include "layout/layout_json.h"
#include "recording/record.h"
#include "recording/recorded_signals.h"
#include "tests/runtime/arrays.h"
#include "tests/runtime/derived_checkpoint.h"
#include "tests/support/tensors.h"
#include "tests/support/tiny_llava.h"

namespace espalier {
namespace {

using test::Arrays;
using test::int64_tensor;
using Heads = AttentionProbe::Heads;
using Rows = AttentionProbe::Rows;
using What = Tap::What;

struct Heard {
  ActPoint point;
  TokenLayout layout;
  std::vector<Signal> asked;
  std::vector<at::Tensor> signals;
};

using Asks = std::function<std::vector<Signal>(const TokenLayout&)>;

// Asks at each of its points, notes what it got and drops every `drop_each`-th image token (0: none).
struct Probing : PruningPolicy {
  std::vector<std::pair<ActPoint, Asks>> plan;
  int64_t drop_each = 0;
  mutable std::vector<Heard> heard;

  std::string spec() const override { return "probing"; }
  std::vector<Step> steps(const ModelFacts&, const PromptLayout&) const override {
    std::vector<Step> steps;
    for (const auto& [point, asks] : plan)
      steps.push_back({.at = point,
                       .needs = asks,
                       .decide = [this, point, asks](const TokenLayout& layout, std::span<const at::Tensor> signals) {
                         return decide(point, layout, asks(layout), signals);
                       }});
    return steps;
  }
  Verdict decide(const ActPoint& p, const TokenLayout& layout, const std::vector<Signal>& asked,
                 std::span<const at::Tensor> signals) const {
    heard.push_back({p, layout, asked, {}});
    for (const at::Tensor& s : signals) heard.back().signals.push_back(s.clone());
    std::vector<int64_t> kept;
    for (int64_t i = 0; i < layout.num_image_tokens(); ++i)
      if (drop_each == 0 || (i + p.layer) % drop_each != 0) kept.push_back(i);
    return {.kept = int64_tensor(kept), .added = {}, .scores = {}, .judged = {}};
  }
};

// ---- the oracle: Signal on recorded arrays ----

class Oracle {
 public:
  explicit Oracle(const Arrays& arrays) : arrays_(arrays) {}

  at::Tensor operator()(const Signal& signal, const ActPoint& point, const TokenLayout& layout) const {
    if (const auto* p = std::get_if<AttentionProbe>(&signal)) return probe(*p, point, layout);
    if (const auto* g = std::get_if<AttentionGrowth>(&signal)) return growth(*g, point, layout);
    return tap(std::get<Tap>(signal), point, layout);
  }

 private:
  at::Tensor array(const std::string& name) const {
    const auto found = arrays_.find(name);
    if (found == arrays_.end()) {
      ADD_FAILURE() << name << " was not recorded";
      return at::zeros({1}, at::kDouble);
    }
    return found->second.to(at::kDouble);
  }

  // [h, n, n] on the tokens of the layout; of a layer ahead from the state that enters it, by its recorded queries and
  // keys: no policy dropped anything since, or the recording of that layer would be of fewer tokens.
  at::Tensor attention(int layer, const TokenLayout& layout) const {
    const at::Tensor s = layout.source_index;
    return array("attention." + std::to_string(layer)).index_select(1, s).index_select(2, s);
  }
  static at::Tensor reduce(const at::Tensor& a, Heads heads) {
    return heads == Heads::kEach ? a : heads == Heads::kMax ? a.amax(0) : a.mean(0);
  }

  at::Tensor probe(const AttentionProbe& p, const ActPoint&, const TokenLayout& layout) const {
    const std::string layer = std::to_string(p.layer);
    if (p.rows == Rows::kClass && p.heads == Heads::kJoint) return array("vision.cls_attention_joint." + layer);
    if (p.rows == Rows::kClass) return reduce(array("vision.cls_attention." + layer), p.heads);
    std::vector<AttentionProbe::Group> groups = p.groups;
    if (p.rows == Rows::kLastToken) groups = {{.rows = int64_tensor({layout.num_tokens() - 1})}};
    std::vector<at::Tensor> parts;
    for (const auto& g : groups) {
      const at::Tensor columns = g.columns.defined() ? g.columns : layout.image_tokens;
      at::Tensor part = reduce(attention(p.layer, layout).index_select(1, g.rows).index_select(2, columns), p.heads);
      parts.push_back(p.reduce_rows ? part.mean(-2) : part);
    }
    return at::cat(parts, -1);
  }

  at::Tensor growth(const AttentionGrowth& g, const ActPoint& point, const TokenLayout& layout) const {
    const auto last = [&](int layer) {
      return attention(layer, layout).select(1, -1).index_select(1, layout.image_tokens);
    };
    const at::Tensor d = last(g.upper) - last(g.lower);
    at::Tensor score = g.relu_per_head ? d.clamp_min(0).mean(0) : d.mean(0).clamp_min(0);
    if (!g.pool.defined()) return score;
    const at::Tensor hidden = state("hidden", point, layout), direction = hidden.index_select(0, g.pool).mean(0);
    const at::Tensor x = hidden.index_select(0, layout.image_tokens);
    return score + g.cosine_weight * (x.mv(direction) / (x.norm(2, 1) * direction.norm()));
  }

  at::Tensor state(const std::string& family, const ActPoint& point, const TokenLayout& layout) const {
    const int layer = point.site == Site::kBeforeLayer ? point.layer : 0;
    return array(family + "." + std::to_string(layer)).index_select(0, layout.source_index);
  }

  at::Tensor tap(const Tap& t, const ActPoint& point, const TokenLayout& layout) const {
    const std::string layer = std::to_string(t.layer);
    switch (t.what) {
      case What::kHidden:
        return state("hidden", point, layout);
      case What::kFinalNorm:
        return state("final_norm", point, layout);
      case What::kKey:
        return array("key." + layer).index_select(1, layout.source_index).transpose(0, 1);
      case What::kVisionOutput:
        return array("vision.output");
      case What::kVisionClass:
        return array("vision.cls_output");
      case What::kVisionKey:
        return array("vision.key." + layer);
      default:
        return {};
    }
  }

  const Arrays& arrays_;
};

// ---- what is asked ----

AttentionProbe last_row(int layer, Heads heads) {
  AttentionProbe p;
  p.layer = layer;
  p.heads = heads;
  return p;
}

// Rows of two groups: all text against the first half of the image tokens, some rows against all.
AttentionProbe two_groups(int layer, Heads heads, const TokenLayout& layout) {
  AttentionProbe p;
  p.layer = layer;
  p.rows = Rows::kGiven;
  p.heads = heads;
  const at::Tensor text = (layout.kind == int64_t(Segment::Kind::kText)).nonzero().squeeze(1);
  p.groups = {{.rows = text, .columns = layout.image_tokens.slice(0, 0, layout.num_image_tokens() / 2)},
              {.rows = int64_tensor({1, layout.num_tokens() / 2, layout.num_tokens() - 2})}};
  return p;
}

AttentionProbe rows_apart(int layer, Heads heads, const TokenLayout& layout) {
  AttentionProbe p = two_groups(layer, heads, layout);
  p.groups.erase(p.groups.begin());
  p.reduce_rows = false;
  return p;
}

AttentionProbe class_row(int layer, Heads heads) {
  AttentionProbe p;
  p.layer = layer;
  p.rows = Rows::kClass;
  p.heads = heads;
  return p;
}

AttentionGrowth growth_of(int lower, int upper, bool per_head, const at::Tensor& pool = {}) {
  AttentionGrowth g;
  g.lower = lower;
  g.upper = upper;
  g.relu_per_head = per_head;
  g.pool = pool;
  g.cosine_weight = pool.defined() ? 0.6 : 0.0;
  return g;
}

std::vector<Signal> all_probes(int layer, const TokenLayout& layout) {
  std::vector<Signal> asked;
  for (const Heads heads : {Heads::kMean, Heads::kMax, Heads::kEach}) {
    asked.emplace_back(last_row(layer, heads));
    asked.emplace_back(two_groups(layer, heads, layout));
    asked.emplace_back(rows_apart(layer, heads, layout));
  }
  return asked;
}

std::vector<Signal> vision_signals() {
  std::vector<Signal> asked = {Tap{What::kVisionOutput}, Tap{What::kVisionClass}};
  for (int layer = 0; layer < 4; ++layer) {
    asked.emplace_back(Tap{What::kVisionKey, layer});
    for (const Heads heads : {Heads::kMean, Heads::kEach, Heads::kJoint}) asked.emplace_back(class_row(layer, heads));
  }
  return asked;
}

std::shared_ptr<Probing> everything(bool vision_at_projector) {
  auto policy = std::make_shared<Probing>();
  const ActPoint first{vision_at_projector ? Site::kProjectorOutput : Site::kVisionOutput};
  policy->plan = {
      {first,
       [=](const TokenLayout&) {
         std::vector<Signal> asked = vision_signals();
         if (vision_at_projector) {
           asked.emplace_back(Tap{What::kHidden});
           asked.emplace_back(Tap{What::kFinalNorm});
         }
         return asked;
       }},
      {{Site::kBeforeLayer, 0},
       [](const TokenLayout& layout) {
         std::vector<Signal> asked = all_probes(0, layout);  // look-ahead
         asked.emplace_back(Tap{What::kHidden});
         return asked;
       }},
      {{Site::kBeforeLayer, 3},
       [](const TokenLayout& layout) {
         std::vector<Signal> asked = all_probes(2, layout);
         for (const Signal& s : all_probes(0, layout)) asked.push_back(s);
         for (const Signal& s : all_probes(3, layout)) asked.push_back(s);  // look-ahead
         for (const bool per_head : {false, true}) {
           asked.emplace_back(growth_of(1, 2, per_head));
           asked.emplace_back(growth_of(0, 2, per_head, int64_tensor({0, 5, layout.num_tokens() - 1})));
         }
         asked.emplace_back(Tap{What::kKey, 0});
         asked.emplace_back(Tap{What::kKey, 2});
         asked.emplace_back(Tap{What::kHidden});
         asked.emplace_back(Tap{What::kFinalNorm});
         return asked;
       }},
      {{Site::kAfterAttention, 4},
       [](const TokenLayout& layout) {
         std::vector<Signal> asked = all_probes(4, layout);
         asked.emplace_back(growth_of(3, 4, false));
         asked.emplace_back(Tap{What::kKey, 4});
         return asked;
       }},
      {{Site::kCache, 6},
       [](const TokenLayout& layout) {
         std::vector<Signal> asked = all_probes(6, layout);
         asked.emplace_back(growth_of(5, 6, true));
         asked.emplace_back(Tap{What::kKey, 5});
         return asked;
       }},
      {{Site::kBeforeLayer, 7}, [](const TokenLayout& layout) { return all_probes(7, layout); }},
  };
  return policy;
}

struct Recorded {
  Arrays arrays;
  std::filesystem::path signals, layout;
};

Recorded record_run(const LoadedModel& model, const std::shared_ptr<Probing>& policy,
                    const test::ScratchFolder& folder) {
  Request request{
      .prompt = test::in_context_prompt(2), .policy = "none", .custom = policy, .options = {}, .trace = false};
  Recorded r{{}, folder.path() / "signals.safetensors", folder.path() / "layout.json"};
  record(model, request, {.signals = r.signals, .layout = r.layout, .only = {}}, {});
  r.arrays = test::read_arrays(r.signals);
  return r;
}

void expect_heard_what_was_recorded(const Probing& policy, const Recorded& recorded) {
  ASSERT_EQ(policy.heard.size(), policy.plan.size());
  const Oracle oracle(recorded.arrays);
  const RecordedLayout layout = read_layout(recorded.layout);
  const RecordedSignals replayed(recorded.signals, *layout.prompt);
  for (const Heard& heard : policy.heard)
    for (size_t i = 0; i < heard.asked.size(); ++i) {
      SCOPED_TRACE(std::string(name_of(heard.point.site)) + " " + std::to_string(heard.point.layer) + " signal " +
                   std::to_string(i));
      ASSERT_EQ(heard.signals.size(), heard.asked.size());
      test::expect_close(heard.signals[i], oracle(heard.asked[i], heard.point, heard.layout), 2e-5);
      const auto* tap = std::get_if<Tap>(&heard.asked[i]);
      if (heard.point.site == Site::kAfterAttention && tap && tap->what != What::kKey) continue;
      test::expect_close(replayed.compute(heard.asked[i], heard.point, heard.layout), heard.signals[i], 2e-5,
                         "replayed");
    }
}

TEST(Signals, UnprunedRunDeliversWhatIsRecorded) {
  for (const bool at_projector : {false, true}) {
    const test::ScratchFolder folder;
    const auto policy = everything(at_projector);
    expect_heard_what_was_recorded(*policy, record_run(test::tiny_llava(), policy, folder));
  }
}

// Look-ahead of a layer whose tokens the same point then drops is of the tokens before; its recording is of those
// behind. It is left out.
void leave_out_look_ahead(Probing& policy) {
  for (auto& [point, asks] : policy.plan) {
    if (point.site != Site::kBeforeLayer) continue;
    asks = [all = asks, layer = point.layer](const TokenLayout& layout) {
      std::vector<Signal> asked;
      for (const Signal& s : all(layout)) {
        const auto* probe = std::get_if<AttentionProbe>(&s);
        if (!(probe && probe->layer == layer)) asked.push_back(s);
      }
      return asked;
    };
  }
}

TEST(Signals, WhileTokensLeave) {
  const test::ScratchFolder folder;
  const auto policy = everything(true);
  leave_out_look_ahead(*policy);
  policy->drop_each = 3;
  const Recorded recorded = record_run(test::tiny_llava(), policy, folder);
  EXPECT_LT(policy->heard.back().layout.num_image_tokens(), policy->heard.front().layout.num_image_tokens() / 2);
  expect_heard_what_was_recorded(*policy, recorded);
}

// Rows and columns of tokens that are gone are zeros, the others' are not; what was there before they left is whole.
TEST(Signals, TokensThatAreGoneAreZeros) {
  const test::ScratchFolder folder;
  auto policy = std::make_shared<Probing>();
  policy->plan = {{{Site::kBeforeLayer, 3}, [](const TokenLayout&) { return std::vector<Signal>{}; }}};
  policy->drop_each = 2;
  const Recorded recorded = record_run(test::tiny_llava(), policy, folder);
  const TokenLayout& before = policy->heard.at(0).layout;
  for (int64_t i = 0; i < before.num_image_tokens(); ++i) {
    const int64_t t = before.image_tokens[i].item<int64_t>();
    const bool is_gone = (i + 3) % 2 == 0;
    for (const int layer : {2, 3, 7}) {
      SCOPED_TRACE(std::to_string(t) + " in layer " + std::to_string(layer));
      const std::string l = std::to_string(layer);
      const bool zero = is_gone && layer >= 3;
      // The state is what the point before the layer judged, the rest what the layer ran on.
      EXPECT_EQ(recorded.arrays.at("hidden." + l)[t].abs().sum().item<float>() == 0, is_gone && layer > 3);
      EXPECT_EQ(recorded.arrays.at("key." + l).select(1, t).abs().sum().item<float>() == 0, zero);
      EXPECT_EQ(recorded.arrays.at("query." + l).select(1, t).abs().sum().item<float>() == 0, zero);
      EXPECT_EQ(recorded.arrays.at("attention." + l).select(1, t).sum().item<float>() == 0, zero);
      EXPECT_EQ(recorded.arrays.at("attention." + l).select(2, t).sum().item<float>() == 0, zero);
    }
    EXPECT_EQ(recorded.arrays.at("hidden.8")[t].abs().sum().item<float>() == 0, is_gone);
  }
  // Rows that are there are distributions over what is there.
  const at::Tensor sums = recorded.arrays.at("attention.5").sum(-1);
  EXPECT_TRUE(((sums - 1).abs().lt(1e-5) | sums.eq(0)).all().item<bool>());
}

// Query heads that share a KV head, from the same weights with every second KV head taken away.
TEST(Signals, GroupedKvHeads) {
  test::DerivedCheckpoint checkpoint;
  checkpoint.patch("config.json", {{"text_config", {{"num_key_value_heads", 2}}}});
  checkpoint.map([](const std::string& name, const at::Tensor& t) {
    return name.find("language_model") != std::string::npos &&
                   (name.ends_with("k_proj.weight") || name.ends_with("v_proj.weight"))
               ? t.slice(0, 0, t.size(0) / 2).contiguous()
               : t;
  });
  checkpoint.write();
  const LoadedModel model = load_model(checkpoint.path(), {.dtype = ComputeDtype::kFloat32, .on_progress = {}});
  ASSERT_EQ(model.facts.num_kv_heads, 2);
  const test::ScratchFolder folder;
  const auto policy = everything(true);
  const Recorded recorded = record_run(model, policy, folder);
  EXPECT_EQ(recorded.arrays.at("key.0").size(0), 2);
  EXPECT_EQ(recorded.arrays.at("attention.0").size(0), 4);
  expect_heard_what_was_recorded(*policy, recorded);
}

// The recording itself: its attention is the softmax of its own queries and keys.
TEST(Signals, RecordedAttentionIsTheSoftmaxOfRecordedQueriesAndKeys) {
  const test::ScratchFolder folder;
  const auto policy = std::make_shared<Probing>();
  const Recorded recorded = record_run(test::tiny_llava(), policy, folder);
  const at::Tensor q = recorded.arrays.at("query.4").to(at::kDouble), k = recorded.arrays.at("key.4").to(at::kDouble);
  const at::Tensor scores = q.matmul(k.transpose(1, 2)) / std::sqrt(double(q.size(2)));
  const at::Tensor hidden = at::ones({q.size(1), q.size(1)}, at::kBool).triu(1);
  test::expect_close(recorded.arrays.at("attention.4"), scores.masked_fill(hidden, -INFINITY).softmax(-1), 2e-6);
}

}  // namespace
}  // namespace espalier
