// SPDX-License-Identifier: Apache-2.0
// Record and replay through real files: a replay keeps what the live run kept; the specifications' vectors written as
// files by hand give the specifications' answers; what is missing or misshapen is named.
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "espalier/error.h"
#include "recording/record.h"
#include "recording/replay.h"
#include "runtime/generate.h"
#include "tests/runtime/arrays.h"
#include "tests/runtime/golden_case.h"
#include "tests/runtime/scratch_folder.h"
#include "tests/support/made_up_files.h"
#include "tests/support/tensors.h"

namespace espalier {
namespace {

using Json = nlohmann::json;
using test::Arrays;
using test::expect_says;
using test::GoldenCase;
using test::message_of;
using test::tiny_llava;
using Tokens = std::vector<int64_t>;

// A recording's two files in a folder, and what replays of it say.
class Recording {
 public:
  const std::filesystem::path signals() const { return folder_.path() / "signals.safetensors"; }
  const std::filesystem::path layout() const { return folder_.path() / "layout.json"; }
  const std::filesystem::path out() const { return folder_.path() / "out.json"; }

  Json replayed(const std::string& policy) const {
    replay(make_policy(policy), {.signals = signals(), .layout = layout(), .out = out()});
    return Json::parse(test::read_file(out()));
  }
  void write(const Arrays& arrays, const Json& layout_json) const {
    test::write_arrays(signals(), arrays);
    folder_.write("layout.json", layout_json.dump());
  }
  void record_run(const Prompt& prompt, const std::string& policy, const LoadedModel& model = tiny_llava()) const {
    const Request request{.prompt = prompt, .policy = policy, .custom = {}, .options = {}, .trace = false};
    record(model, request, {.signals = signals(), .layout = layout(), .only = {}}, {});
  }

 private:
  test::ScratchFolder folder_;
};

Result live_run(const Prompt& prompt, const std::string& policy, const LoadedModel& model = tiny_llava()) {
  Request request{.prompt = prompt, .policy = policy, .custom = {}, .options = {}, .trace = true};
  request.options.max_new_tokens = 1;
  return generate(model, request);
}

// The same sets at every point; scores as close as float32 attention in two forms is.
void expect_same_points(const Json& replayed, const Result& live) {
  EXPECT_EQ(replayed.at("kept").get<Tokens>(), live.kept);
  ASSERT_EQ(replayed.at("points").size(), live.points.size());
  for (size_t i = 0; i < live.points.size(); ++i) {
    SCOPED_TRACE(i);
    const Json& point = replayed["points"][i];
    EXPECT_EQ(point.at("site"), live.points[i].site);
    EXPECT_EQ(point.value("layer", -1), live.points[i].layer);
    if (live.points[i].kept_per_head.empty()) {
      EXPECT_EQ(point.at("kept").get<Tokens>(), live.points[i].kept);
    } else {
      EXPECT_EQ(point.at("kept").get<std::vector<Tokens>>(), live.points[i].kept_per_head);
    }
    EXPECT_EQ(point.value("candidates", Tokens{}), live.points[i].candidates);
    const auto scores = point.value("scores", std::vector<double>{});
    ASSERT_EQ(scores.size(), live.points[i].scores.size());
    for (size_t s = 0; s < scores.size(); ++s) EXPECT_NEAR(scores[s], live.points[i].scores[s], 2e-5) << s;
  }
}

std::string name_of_case(const testing::TestParamInfo<std::string>& test) {
  return test::test_name(test.param);
}

// resize changes pictures before anything is recorded.
std::vector<std::string> examples_and(std::initializer_list<const char*> more) {
  std::vector<std::string> specs = test::examples_and(more);
  std::erase_if(specs, [](const std::string& spec) { return spec.starts_with("resize"); });
  return specs;
}

std::vector<std::string> policies() {
  return examples_and({"random:num_kept=5", "fastv:num_kept=9,layer=5", "fastv:keep_ratio=1/4,pool=image",
                       "catp:keep_ratio=1/3,k=4,lambda1=0.2,lambda2=0",
                       "catp:keep_ratio=1/3,stage1_share=0,relu=per_head,delta_norm=max",
                       "catp:keep_ratio=1/3,stage1_share=0,importance=attention,delta_norm=max",
                       "catp:keep_ratio=1/3,stage1_share=1,similarity=clamp",
                       "catp:keep_ratio=1/2,query_pool=text,context_pool=image,similarity2=affine,ranking=per_image",
                       "catp:keep_ratio=2/9 + fastv:keep_ratio=1/9,layer=6", "sparsevlm:num_kept=30:20:10",
                       "sparsevlm:rule=rank_scale,scale=2,recycle=false",
                       "atp:theta_r=0.5:0.4:0.3,theta_s=1,norm=rank,min_per_image=3",
                       "prumerge+:num_kept=12,neighbours=4", "divprune:keep_ratio=1/2 + atp:theta_r=0.3,theta_s=0.9"});
}

class ReplayTest : public testing::TestWithParam<std::string> {};

TEST_P(ReplayTest, OfAnUnprunedRecordingKeepsWhatTheFirstPointOfTheLiveRunKept) {
  const Prompt prompt = test::in_context_prompt(4);
  static const Recording recording;
  static const bool recorded = (recording.record_run(prompt, "none"), true);
  ASSERT_TRUE(recorded);
  const Json replayed = recording.replayed(GetParam());
  EXPECT_EQ(replayed.at("policy").get<std::string>(), make_policy(GetParam())->spec());
  const Result live = live_run(prompt, GetParam());
  ASSERT_EQ(replayed.at("points").size(), live.points.size());
  if (live.points.empty()) {
    EXPECT_EQ(replayed.at("kept").get<Tokens>(), live.kept);
    return;
  }
  // Up to the first verdict both saw the same model.
  if (live.points[0].kept_per_head.empty()) {
    EXPECT_EQ(replayed["points"][0].at("kept").get<Tokens>(), live.points[0].kept);
  }
  if (live.points.size() == 1) expect_same_points(replayed, live);
}

// The recording of the pruned run has what every later point saw.
TEST_P(ReplayTest, OfThePolicysOwnRecordingKeepsTheSame) {
  for (const int shots : {0, 3}) {
    SCOPED_TRACE(shots);
    const Prompt prompt = test::in_context_prompt(shots);
    const Recording recording;
    recording.record_run(prompt, GetParam());
    expect_same_points(recording.replayed(GetParam()), live_run(prompt, GetParam()));
  }
}

TEST_P(ReplayTest, OfTheGoldenPrompts) {
  for (const char* name : {"pair_raw", "text_only"}) {
    SCOPED_TRACE(name);
    const Prompt prompt = GoldenCase(name).prompt();
    const Recording recording;
    recording.record_run(prompt, GetParam());
    expect_same_points(recording.replayed(GetParam()), live_run(prompt, GetParam()));
  }
}

INSTANTIATE_TEST_SUITE_P(Policies, ReplayTest, testing::ValuesIn(policies()), name_of_case);

// ---- tiles, row breaks, grouped queries and a sliding window ----

std::vector<std::string> next_policies() {
  std::vector<std::string> specs = examples_and(
      {"uniform:keep_ratio=1/4,row_breaks=follow", "fastv:num_kept=9,layer=5,rows=all,row_breaks=follow",
       "fastv:keep_ratio=1/4,pool=image", "catp:keep_ratio=1/3,stage1_share=0,relu=per_head,row_breaks=pool",
       "hired:keep_ratio=1/6,allocation=count_strips", "visionzip:num_kept=7",
       "divprune:keep_ratio=1/2 + fastv:keep_ratio=1/4"});
  std::erase_if(specs, test::cuts_caches);  // not with a sliding window
  return specs;
}

class NextReplayTest : public testing::TestWithParam<std::string> {};

TEST_P(NextReplayTest, OfThePolicysOwnRecordingKeepsTheSame) {
  const LoadedModel& model = test::tiny_model("llava_next_mistral");
  for (const auto& prompt : {GoldenCase("wide", "llava_next_mistral").prompt(), Prompt(test::in_context_prompt(1))}) {
    const Recording recording;
    recording.record_run(prompt, GetParam(), model);
    expect_same_points(recording.replayed(GetParam()), live_run(prompt, GetParam(), model));
  }
}

INSTANTIATE_TEST_SUITE_P(Policies, NextReplayTest, testing::ValuesIn(next_policies()), name_of_case);

// ---- the specifications' vectors ----

Json layout_of(const Json& segments, const Json& grids, int query_example, int num_layers) {
  Json images = Json::array();
  for (const Json& grid : grids) images.push_back({{"grid", grid}});
  return {{"num_tokens", segments.back().at("end")},
          {"query_example", query_example},
          {"model", {{"num_layers", num_layers}, {"vision_layers", 4}, {"vision_feature_layer", 2}}},
          {"images", images},
          {"segments", segments}};
}
Json text(int begin, int end, int example) {
  return {{"kind", "text"}, {"begin", begin}, {"end", end}, {"example", example}};
}
Json patches(int begin, int end, int image, int example) {
  return {{"kind", "patches"},  {"begin", begin},          {"end", end}, {"image", image}, {"crop", 0},
          {"example", example}, {"grid", {1, end - begin}}};
}

at::Tensor rows_of(const std::vector<std::vector<float>>& rows) {
  std::vector<at::Tensor> tensors;
  for (const auto& row : rows) tensors.push_back(at::tensor(row));
  return at::stack(tensors);
}

// docs/specs/catp.md, section 9, V1.
TEST(SpecVectors, CatpStageOne) {
  const Recording recording;
  recording.write({{"hidden.0", rows_of({{1, 0, 0},
                                         {.9f, .1f, 0},
                                         {0, 1, 0},
                                         {0, .8f, .6f},
                                         {0, 0, 1},
                                         {.5f, .5f, .5f},
                                         {.2f, .4f, .9f},
                                         {0, .6f, .7f}})}},
                  layout_of({patches(0, 6, 0, 0), text(6, 8, 0)}, {{1, 6}}, 0, 8));
  const std::pair<const char*, Tokens> cases[] = {
      {"lambda1=0", {5, 0, 3, 4, 2, 1}}, {"lambda1=0.7", {5, 3, 4, 1, 2, 0}}, {"lambda1=5", {5, 3, 4, 2, 1, 0}}};
  for (const auto& [lambda, order] : cases)
    for (int64_t k = 1; k < 6; ++k) {
      Tokens expected(order.begin(), order.begin() + k);
      std::sort(expected.begin(), expected.end());
      const Json result = recording.replayed("catp:stage1_share=1,num_kept=" + std::to_string(k) + "," + lambda);
      EXPECT_EQ(result.at("kept").get<Tokens>(), expected) << lambda << " " << k;
      EXPECT_EQ(result.at("points").at(0).at("site"), "projector_output");
      EXPECT_FALSE(result.at("points").at(0).contains("layer"));
    }
}

// docs/specs/catp.md, section 9, V2.
TEST(SpecVectors, CatpStageTwo) {
  const std::vector<std::vector<float>> h = {{1, 1, 1},       {1, 0, 0},       {0, 1, 0},       {.6f, .8f, 0},
                                             {.3f, .3f, .9f}, {0, 0, 1},       {-1, 0, 0},      {.5f, .1f, .8f},
                                             {.2f, .9f, .1f}, {.8f, .2f, .4f}, {.1f, .9f, .2f}, {-.5f, .5f, .5f},
                                             {.9f, .3f, .1f}, {.7f, .4f, .3f}};
  std::vector<std::vector<float>> next;
  for (const auto& row : h) next.push_back({row[1] + .1f, row[2] + .1f, row[0] + .1f});
  const std::vector<std::vector<std::vector<float>>> last = {
      {{.25f, .06f, .03f, .02f, .05f, .02f, .05f, .04f, .05f, .10f, .08f, .05f, .10f, .10f},
       {.15f, .04f, .05f, .04f, .07f, .04f, .03f, .06f, .07f, .08f, .08f, .07f, .10f, .12f}},
      {{.20f, .05f, .02f, .10f, .04f, .03f, .01f, .06f, .05f, .10f, .06f, .04f, .09f, .15f},
       {.10f, .09f, .04f, .06f, .06f, .01f, .03f, .10f, .05f, .08f, .08f, .06f, .09f, .15f}}};
  Arrays arrays = {{"hidden.2", rows_of(h)}, {"hidden.3", rows_of(next)}};
  for (int layer = 0; layer < 2; ++layer) {
    at::Tensor a = at::zeros({2, 14, 14});
    for (int head = 0; head < 2; ++head) a[head][13].copy_(at::tensor(last[layer][head]));
    arrays["attention." + std::to_string(layer)] = a;
  }
  const Recording recording;
  recording.write(arrays, layout_of({text(0, 1, -1), patches(1, 4, 0, 0), text(4, 5, 0), patches(5, 8, 1, 1),
                                     text(8, 9, 1), patches(9, 12, 2, 2), text(12, 14, 2)},
                                    {{1, 3}, {1, 3}, {1, 3}}, 2, 4));
  const auto points = [&](const std::string& options) {
    return recording.replayed("catp:keep_ratio=1/2,stage1_share=0,k=2" + options).at("points");
  };
  const auto context = [&](const std::string& options) {
    Tokens kept = points(options).at(0).at("kept").get<Tokens>();
    std::erase_if(kept, [](int64_t t) { return t >= 9; });
    return kept;
  };
  const Json both = points("");
  ASSERT_EQ(both.size(), 2U);
  EXPECT_EQ(both[0].at("site"), "before_layer");
  EXPECT_EQ(both[0].at("layer"), 2);
  EXPECT_EQ(both[0].at("candidates").get<Tokens>(), (Tokens{1, 2, 3, 5, 6, 7}));
  const double scores[] = {0.373247, 0.406234, 0.586935, 0.264935, -0.353247, 0.482411};
  for (size_t i = 0; i < 6; ++i) EXPECT_NEAR(both[0].at("scores").at(i).get<double>(), scores[i], 2e-6);
  EXPECT_EQ(both[0].at("kept").get<Tokens>(), (Tokens{2, 3, 7, 9, 10, 11}));
  EXPECT_EQ(both[1].at("layer"), 3);
  const double query_scores[] = {0.807083, 0.930790, 0.604634};
  for (size_t i = 0; i < 3; ++i) EXPECT_NEAR(both[1].at("scores").at(i).get<double>(), query_scores[i], 2e-6);
  EXPECT_EQ(both[1].at("kept").get<Tokens>(), (Tokens{2, 3, 7, 10}));
  EXPECT_EQ(context(",delta_norm=max"), (Tokens{1, 3, 7}));
  EXPECT_EQ(context(",query_pool=text"), (Tokens{1, 3, 7}));
  EXPECT_EQ(context(",lambda2=0"), (Tokens{1, 3, 7}));
}

// docs/specs/fastv.md, section 12.
TEST(SpecVectors, Fastv) {
  const auto kept = [](const at::Tensor& attention, const Json& layout, const std::string& options) {
    const Recording recording;
    recording.write({{"attention.1", attention}}, layout);
    return recording.replayed("fastv:" + options).at("kept").get<Tokens>();
  };
  at::Tensor v1 = at::zeros({2, 8, 8});
  v1[0][7].copy_(at::tensor({4.f, 4.f, 16.f, 4.f, 8.f, 12.f, 8.f, 8.f}) / 64);
  v1[1][7].copy_(at::tensor({4.f, 4.f, 8.f, 20.f, 8.f, 12.f, 4.f, 4.f}) / 64);
  const Json eight = layout_of({text(0, 2, 0), patches(2, 6, 0, 0), text(6, 8, 0)}, {{1, 4}}, 0, 4);
  EXPECT_EQ(kept(v1, eight, "num_kept=2"), (Tokens{2, 3}));
  EXPECT_EQ(kept(v1, eight, "num_kept=3"), (Tokens{2, 3, 5}));
  const at::Tensor v2 = rows_of({{1, 0, 0, 0, 0},
                                 {.5f, .5f, 0, 0, 0},
                                 {.25f, .25f, .5f, 0, 0},
                                 {.25f, .5f, .125f, .125f, 0},
                                 {.125f, .125f, .25f, .25f, .25f}})
                            .unsqueeze(0);
  const Json five = layout_of({text(0, 1, 0), patches(1, 4, 0, 0), text(4, 5, 0)}, {{1, 3}}, 0, 4);
  EXPECT_EQ(kept(v2, five, "num_kept=1"), Tokens{2});
  EXPECT_EQ(kept(v2, five, "num_kept=1,rows=all"), Tokens{1});
  at::Tensor v3 = at::zeros({3, 14, 14});
  for (int h = 0; h < 3; ++h)
    for (int q = 0; q < 14; ++q) {
      std::vector<double> row(14, 0.0);
      double sum = 0;
      for (int k = 0; k <= q; ++k) sum += row[k] = std::exp(((7 * h + 3 * q + 5 * k + k * h) % 17) / 4.0);
      for (int k = 0; k <= q; ++k) v3[h][q][k] = row[k] / sum;
    }
  const Json fourteen = layout_of({text(0, 2, 0), patches(2, 10, 0, 0), text(10, 14, 0)}, {{1, 8}}, 0, 4);
  EXPECT_EQ(kept(v3, fourteen, "num_kept=4"), (Tokens{2, 4, 6, 9}));
  EXPECT_EQ(kept(v3, fourteen, "num_kept=6,rows=all"), (Tokens{2, 3, 4, 5, 6, 8}));
}

// ---- results as they come back in, and what they say of merged tokens ----

// A recorded run's kept sets, applied to the same prompt, keep the same.
TEST(ReplayResult, IsAMaskForKeepmask) {
  const Prompt prompt = test::in_context_prompt(2);
  for (const char* policy : {"fastv:keep_ratio=1/3,row_breaks=follow", "catp:keep_ratio=2/9", "plphp:keep_ratio=1/3"}) {
    SCOPED_TRACE(policy);
    const Recording recording;
    recording.record_run(prompt, policy);
    recording.replayed(policy);
    const Result first = live_run(prompt, policy);
    const Result second = live_run(prompt, "keepmask:file=" + recording.out().string());
    EXPECT_EQ(second.kept, first.kept);
    ASSERT_EQ(second.points.size(), first.points.size());
    for (size_t i = 0; i < first.points.size(); ++i) {
      EXPECT_EQ(second.points[i].kept, first.points[i].kept);
      EXPECT_EQ(second.points[i].kept_per_head, first.points[i].kept_per_head);
    }
    EXPECT_EQ(second.token_ids, first.token_ids);
  }
}

// All image tokens that leave the point: those that stay as they were and the new ones, in their order.
TEST(ReplayResult, MergedVectorsAreAllThatLeaveThePoint) {
  const Prompt prompt = test::in_context_prompt(1);
  const Recording recording;
  recording.record_run(prompt, "none");
  const Json point = recording.replayed("visionzip:num_kept=6,contextual=2").at("points").at(0);
  const Arrays recorded = test::read_arrays(recording.signals());
  std::filesystem::path vectors = recording.out();
  const at::Tensor merged =
      test::read_arrays(vectors.replace_extension(".safetensors")).at(point.at("merged").get<std::string>());
  const Tokens source = point.at("merged_source").get<Tokens>(), kept = point.at("kept").get<Tokens>();
  ASSERT_EQ(merged.size(0), 12);
  ASSERT_EQ(source.size(), 12U);
  const int64_t patches = recorded.at("vision.output").size(0) / 2;
  const Json layout = Json::parse(test::read_file(recording.layout()));
  std::vector<int64_t> begins;
  for (const Json& s : layout.at("segments"))
    if (s.at("kind") == "patches") begins.push_back(s.at("begin"));
  for (int64_t image = 0; image < 2; ++image) {
    EXPECT_EQ(source[6 * image], -1);  // the class row
    EXPECT_TRUE(merged[6 * image].allclose(recorded.at("vision.cls_output")[image]));
    for (int64_t i = 1; i < 4; ++i) {  // dominant patches as they were
      const int64_t s = source[6 * image + i];
      EXPECT_TRUE(std::ranges::binary_search(kept, s));
      EXPECT_TRUE(merged[6 * image + i].equal(recorded.at("vision.output")[image * patches + s - begins[image]]));
    }
    for (int64_t i = 4; i < 6; ++i) EXPECT_FALSE(std::ranges::binary_search(kept, source[6 * image + i]));
  }
}

// Merged tokens too: those of a place and those without, in every family's order.
TEST(ReplayResult, OfMergedTokensIsAMaskForKeepmask) {
  const std::pair<const char*, const char*> cases[] = {{"llava15", "prumerge"},
                                                       {"llava15", "visionzip:num_kept=6,contextual=2"},
                                                       {"llava15", "m3:keep_ratio=1/4"},
                                                       {"llava15", "sparsevlm:num_kept=30:20:10"},
                                                       {"llava_next_mistral", "prumerge+:num_kept=6,neighbours=4"},
                                                       {"llava_next_mistral", "visionzip:num_kept=7,contextual=3"},
                                                       {"llava_next_mistral", "m3:keep_ratio=1/4"},
                                                       {"llava_next_vicuna", "sparsevlm:keep_ratio=1/2"},
                                                       {"qwen25vl", "sparsevlm:keep_ratio=1/2"}};
  for (const auto& [family, policy] : cases) {
    SCOPED_TRACE(std::string(family) + " " + policy);
    const LoadedModel& model = test::tiny_model(family);
    const Prompt prompt = test::in_context_prompt(2);
    const Recording recording;
    recording.record_run(prompt, policy, model);
    const Json made = recording.replayed(policy);
    const std::string row_breaks = std::string(policy).starts_with("sparsevlm") ? ",row_breaks=pool" : "";
    const Result first = live_run(prompt, policy, model),
                 second = live_run(prompt, "keepmask:file=" + recording.out().string() + row_breaks, model);
    EXPECT_EQ(second.kept, first.kept);
    EXPECT_EQ(second.stats.tokens_per_layer, first.stats.tokens_per_layer);
    EXPECT_EQ(second.token_ids, first.token_ids);
    size_t entered = 0;
    for (const PointTrace& point : second.points) {
      const auto same = std::ranges::find_if(
          first.points, [&](const PointTrace& p) { return p.site == point.site && p.layer == point.layer; });
      ASSERT_NE(same, first.points.end());
      EXPECT_EQ(point.kept, same->kept);
      EXPECT_EQ(point.source, same->source);
      EXPECT_EQ(point.position_id, same->position_id);
      ++entered;
    }
    EXPECT_GT(entered, 0U);
  }
}

TEST(ReplayResult, KeepmaskRefusesWhatItCannotName) {
  const Prompt prompt = test::in_context_prompt(1);
  const Recording recording;
  recording.record_run(prompt, "none");
  Json made = recording.replayed("visionzip:num_kept=6,contextual=2");
  const auto refusal = [&](const Json& result) {
    std::ofstream(recording.out()) << result;
    return message_of<Error>([&] { live_run(prompt, "keepmask:file=" + recording.out().string()); });
  };
  Json later = made;
  later["points"].push_back({{"site", "before_layer"}, {"layer", 3}, {"kept", Json::array()}});
  expect_says(refusal(later), {"before_layer 3", "without a place", "vision_output", "cannot be told"});
  Json stranger = made;
  stranger["points"][0]["merged_source"][1] = 1;  // text
  expect_says(refusal(stranger), {"token 1"});
  Json twice = made;
  twice["points"][0]["merged_source"][2] = twice["points"][0]["merged_source"][1];
  expect_says(refusal(twice), {"two tokens stand at one place"});
  EXPECT_EQ(live_run(test::in_context_prompt(1), "none").token_ids.size(), 1U);
}

TEST(ReplayResult, ResizeHasNone) {
  const Recording recording;
  recording.record_run(test::in_context_prompt(0), "none");
  expect_says(message_of<Error>([&] { recording.replayed("resize:keep_ratio=1/4"); }),
              {"resize", "before the vision tower"});
}

// ---- what is missing or misshapen ----

class DamagedRecording : public testing::Test {
 protected:
  void SetUp() override {
    recording_.record_run(test::in_context_prompt(2), "none");
    arrays_ = test::read_arrays(recording_.signals());
  }
  std::string refusal(const std::string& policy) {
    test::write_arrays(recording_.signals(), arrays_);
    const std::string message = message_of<Error>([&] { recording_.replayed(policy); });
    EXPECT_FALSE(std::filesystem::exists(recording_.out()));  // nothing half-written
    return message;
  }
  Recording recording_;
  Arrays arrays_;
};

TEST_F(DamagedRecording, AMissingTensorIsNamed) {
  const std::pair<const char*, const char*> cases[] = {{"attention.1", "fastv:keep_ratio=1/2"},
                                                       {"hidden.0", "catp:keep_ratio=1/2"},
                                                       {"hidden.3", "catp:keep_ratio=1/2,k=3,stage1_share=0"},
                                                       {"attention.2", "catp:keep_ratio=1/2,k=3,stage1_share=0"}};
  for (const auto& [name, policy] : cases) {
    const at::Tensor kept = arrays_.at(name);
    arrays_.erase(name);
    expect_says(refusal(policy), {recording_.signals().c_str(), name, "not recorded"});
    arrays_[name] = kept;
  }
}

TEST_F(DamagedRecording, OtherShapes) {
  const at::Tensor attention = arrays_.at("attention.1"), hidden = arrays_.at("hidden.0");
  const int64_t n = hidden.size(0);
  for (const at::Tensor& wrong : {attention.slice(1, 1), attention.slice(2, 1), attention[0], attention.unsqueeze(0)}) {
    arrays_["attention.1"] = wrong;
    expect_says(refusal("fastv:keep_ratio=1/2"),
                {recording_.signals().c_str(), "attention.1", std::to_string(n).c_str()});
  }
  arrays_["attention.1"] = attention;
  for (const at::Tensor& wrong : {hidden.slice(0, 1), hidden.flatten(), hidden.unsqueeze(2)}) {
    arrays_["hidden.0"] = wrong;
    expect_says(refusal("catp:keep_ratio=1/2"), {"hidden.0", std::to_string(n).c_str()});
  }
  arrays_["hidden.0"] = hidden;
  arrays_["vision.output"] = arrays_.at("vision.output").slice(0, 1);
  expect_says(refusal("fastv:keep_ratio=1/2"), {"vision.output", "48"});
}

TEST_F(DamagedRecording, OtherDtypes) {
  arrays_["attention.1"] = arrays_.at("attention.1").to(at::kHalf);
  expect_says(refusal("fastv:keep_ratio=1/2"), {recording_.signals().c_str(), "attention.1", "F32", "F16"});
}

TEST(Record, OnlyWhatIsAskedFor) {
  const test::ScratchFolder folder;
  const Request request{
      .prompt = test::in_context_prompt(0), .policy = "none", .custom = {}, .options = {}, .trace = false};
  const auto names = [&](const std::vector<std::string>& only) {
    record(tiny_llava(), request, {.signals = folder.path() / "s", .layout = folder.path() / "l", .only = only}, {});
    std::vector<std::string> written;
    for (const auto& [name, t] : test::read_arrays(folder.path() / "s")) written.push_back(name);
    return written;
  };
  EXPECT_EQ(names({"attention.5", "hidden.0"}), (std::vector<std::string>{"attention.5", "hidden.0"}));
  EXPECT_EQ(names({"vision.cls_attention"}).size(), 4U);
  EXPECT_EQ(names({"hidden"}).size(), 9U);
  std::filesystem::remove(folder.path() / "s");
  expect_says(message_of<Error>([&] { names({"hidden", "clip.image"}); }), {"clip.image"});
  EXPECT_FALSE(std::filesystem::exists(folder.path() / "s"));
}

}  // namespace
}  // namespace espalier
