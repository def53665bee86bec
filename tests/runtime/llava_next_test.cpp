// SPDX-License-Identifier: Apache-2.0
// LLaVA-NeXT through the whole runtime: row breaks, un-padded pictures, grouped queries and a sliding window against
// the masked reference, with every policy that drops; packed requests; checkpoints in every form on disk.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/softmax.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "espalier/error.h"
#include "recording/record.h"
#include "runtime/encode.h"
#include "tests/runtime/arrays.h"
#include "tests/runtime/derived_checkpoint.h"
#include "tests/runtime/golden_case.h"
#include "tests/runtime/masked_run.h"
#include "tests/support/made_up_files.h"
#include "tests/support/tensors.h"
#include "tests/support/tiny_llava.h"

namespace espalier {
namespace {

using test::Answered;
using test::DerivedCheckpoint;
using test::expect_says;
using test::message_of;
using test::picture;

const LoadedModel& mistral() {  // grouped queries, a window of 96
  return test::tiny_model("llava_next_mistral");
}
const LoadedModel& vicuna() {
  return test::tiny_model("llava_next_vicuna");
}

// Pictures whose tiles lose rows, columns or nothing to un-padding.
Chat prompt_of(const std::vector<std::pair<int, int>>& sizes) {
  std::vector<Example> examples;
  for (size_t i = 0; i + 1 < sizes.size(); ++i)
    examples.push_back(
        {.image = {.image = picture(sizes[i].first, sizes[i].second, 10 + static_cast<uint32_t>(i)), .pins = {}},
         .question = "What is the red cat doing?",
         .answer = i % 2 ? "sitting" : "near the wall"});
  return in_context_chat(examples, {.image = picture(sizes.back().first, sizes.back().second, 99), .pins = {}},
                         "What colour is the kite?");
}

Chat mixed_prompt() {
  return prompt_of({{60, 70}, {150, 40}, {56, 56}});
}

void expect_dropping_equals_masking(const LoadedModel& model, const Prompt& prompt, PolicyPtr policy, int new_tokens) {
  std::vector<Sequence> sequences;
  sequences.push_back(test::sequence_for(model, prompt, std::move(policy)));
  const std::vector<Answered> runs = test::run_packed(model, sequences, new_tokens);
  test::expect_equals_masked_run(model, prompt, sequences[0], runs[0]);
}

// ---- sites ----

// Keeps a random part, row breaks among what competes.
class RandomKeepOfAll : public test::RandomKeep {
 public:
  using RandomKeep::RandomKeep;
  bool row_breaks_compete() const override { return true; }
};

class NextSites : public testing::TestWithParam<std::vector<ActPoint>> {};

TEST_P(NextSites, DroppingEqualsMasking) {
  const bool cuts_cache = std::ranges::any_of(GetParam(), [](const ActPoint& p) { return p.site == Site::kCache; });
  const LoadedModel& model = cuts_cache ? vicuna() : mistral();
  const int heads = model.facts.num_kv_heads;
  for (const double share : {0.3, 0.02})
    expect_dropping_equals_masking(model, mixed_prompt(),
                                   std::make_shared<test::RandomKeep>(GetParam(), share, 5, heads), 5);
  expect_dropping_equals_masking(model, mixed_prompt(), std::make_shared<RandomKeepOfAll>(GetParam(), 0.4, 5, heads),
                                 5);
}

std::vector<std::vector<ActPoint>> some_points() {
  return {{{Site::kVisionOutput}},
          {{Site::kProjectorOutput}},
          {{Site::kBeforeLayer, 2}},
          {{Site::kAfterAttention, 5}},
          {{Site::kCache, 3}},
          {{Site::kVisionOutput}, {Site::kProjectorOutput}, {Site::kBeforeLayer, 3}, {Site::kAfterAttention, 6}},
          {{Site::kProjectorOutput}, {Site::kCache, 1}, {Site::kBeforeLayer, 4}, {Site::kCache, 6}}};
}

INSTANTIATE_TEST_SUITE_P(Sites, NextSites, testing::ValuesIn(some_points()),
                         [](const auto& points) { return test::name_of_points(points.param); });

// ---- policies ----

std::vector<std::string> dropping_policies() {
  std::vector<std::string> specs = test::examples_where([](const PolicyEntry& entry, const PolicyExample& example) {
    return example.keeps_tokens && !test::cuts_caches(std::string(entry.name));  // not with a sliding window
  });
  for (const char* spec :
       {"fastv:num_kept=5,layer=1,rows=all,row_breaks=follow", "fastv:keep_ratio=1/8,pool=image",
        "catp:keep_ratio=1/9,row_breaks=pool", "catp:keep_ratio=1/3,k=4,stage1_share=0,min_per_image=3",
        "divprune:keep_ratio=1/2 + fastv:keep_ratio=1/4"})
    specs.emplace_back(spec);
  return specs;
}

class NextPolicies : public testing::TestWithParam<std::string> {};

TEST_P(NextPolicies, DroppingEqualsMasking) {
  for (const LoadedModel* model : {&mistral(), &vicuna()}) {
    SCOPED_TRACE(model->folder.filename());
    expect_dropping_equals_masking(*model, mixed_prompt(), test::make_example(GetParam()), 6);
  }
}

// Nothing is left of the second picture's tiles but row breaks, or not even these.
TEST_P(NextPolicies, OfPicturesThatAreLines) {
  expect_dropping_equals_masking(mistral(), prompt_of({{1, 700}, {700, 1}, {60, 70}}), test::make_example(GetParam()),
                                 3);
}

std::string name_of_spec(const testing::TestParamInfo<std::string>& info) {
  return test::test_name(info.param);
}

INSTANTIATE_TEST_SUITE_P(Policies, NextPolicies, testing::ValuesIn(dropping_policies()), name_of_spec);

TEST(NextPolicies, AtTheCacheOnlyWithoutASlidingWindow) {
  expect_dropping_equals_masking(vicuna(), mixed_prompt(), make_policy("plphp"), 6);
  expect_dropping_equals_masking(vicuna(), mixed_prompt(), make_policy("plphp:keep_ratio=1/3,row_breaks=follow"), 6);
  expect_says(message_of<Error>([] { test::sequence_for(mistral(), mixed_prompt(), make_policy("plphp")); }),
              {"plphp", "sliding window"});
}

TEST(NextPolicies, KeepingEverythingChangesNoBit) {
  for (const LoadedModel* model : {&mistral(), &vicuna()}) {
    std::vector<Sequence> plain;
    plain.push_back(test::sequence_for(*model, mixed_prompt(), make_policy("none")));
    const Answered expected = test::run_packed(*model, plain, 4)[0];
    for (const char* spec :
         {"random:keep_ratio=1", "uniform:keep_ratio=1,row_breaks=follow", "attention:keep_ratio=1,layer=2",
          "dart:keep_ratio=1", "fastv:keep_ratio=1", "fastv:keep_ratio=1,row_breaks=follow,rows=all",
          "catp:keep_ratio=1", "divprune:keep_ratio=1", "cdpruner:keep_ratio=1", "hired:keep_ratio=1",
          "m3:keep_ratio=1", "vtw:layer=8"}) {
      SCOPED_TRACE(spec);
      std::vector<Sequence> kept;
      kept.push_back(test::sequence_for(*model, mixed_prompt(), make_policy(spec)));
      const Answered run = test::run_packed(*model, kept, 4)[0];
      ASSERT_EQ(run.answer, expected.answer);
      for (size_t i = 0; i < run.logits.size(); ++i) EXPECT_TRUE(run.logits[i].equal(expected.logits[i])) << i;
    }
  }
}

// Merged tokens enter image by image and crop by crop, without row breaks; the decoder then is the plain one on what
// entered, at the positions that the tokens have.
class NextMerging : public testing::TestWithParam<std::string> {};

std::vector<std::string> merging_policies() {
  return test::examples_where([](const PolicyEntry& entry, const PolicyExample& example) {
    return !example.keeps_tokens && !entry.sites.empty() && entry.sites.back() < Site::kBeforeLayer;
  });
}

TEST_P(NextMerging, EntersCropByCropAndEqualsTheReference) {
  const c10::InferenceMode no_gradients;
  for (const LoadedModel* model : {&mistral(), &vicuna()}) {
    SCOPED_TRACE(model->folder.filename());
    std::vector<Sequence> sequences;
    sequences.push_back(test::sequence_for(*model, mixed_prompt(), make_policy(GetParam())));
    encode(*model, sequences[0]);
    const TokenLayout layout = sequences[0].walk.layout();
    EXPECT_FALSE((layout.kind == static_cast<int64_t>(Segment::Kind::kRowBreak)).any().item<bool>());
    const at::Tensor place = layout.image * 100 + layout.crop;
    const at::Tensor of_images = place.index_select(0, (layout.image >= 0).nonzero().squeeze(1));
    EXPECT_TRUE(of_images.equal(std::get<0>(of_images.sort())));
    const at::Tensor hidden = sequences[0].stream.hidden.clone();
    sequences.clear();
    sequences.push_back(test::sequence_for(*model, mixed_prompt(), make_policy(GetParam())));
    const Answered run = test::run_packed(*model, sequences, 5)[0];
    const int64_t n = hidden.size(0);
    const std::vector<int32_t> fed(run.answer.begin(), run.answer.end() - 1);
    const test::Dropped nothing{std::vector<int>(static_cast<size_t>(n), 8), {}};
    const at::Tensor expected =
        test::masked_logits(*model, hidden, layout.position_id, sequences[0].prompt.next_position, nothing, fed)
            .slice(0, n - 1);
    for (size_t step = 0; step < run.logits.size(); ++step) {
      const at::Tensor reference = expected[static_cast<int64_t>(step)];
      EXPECT_LT((run.logits[step].to(at::kDouble) - reference).abs().max().item<double>(),
                5e-5 * reference.pow(2).mean().sqrt().item<double>());
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Policies, NextMerging, testing::ValuesIn(merging_policies()), name_of_spec);

TEST(NextRowBreaks, FollowTheirRowUntilItsLastPatchLeaves) {
  const Prompt prompt = RawPrompt{"<image> a", {{.image = picture(112, 112, 3), .pins = {}}}, {}};
  class KeepRow final : public PruningPolicy {  // the full view's first patch and one patch of stitched row 5
   public:
    std::string spec() const override { return "keep_row"; }
    std::vector<Step> steps(const ModelFacts&, const PromptLayout&) const override {
      return {{.at = {Site::kProjectorOutput}, .decide = [](const TokenLayout&, std::span<const at::Tensor>) {
                 return Verdict{.kept = test::int64_tensor({0, 16 + 5 * 8 + 3})};
               }}};
    }
  };
  std::vector<Sequence> sequences;
  sequences.push_back(test::sequence_for(mistral(), prompt, std::make_shared<KeepRow>()));
  test::run_packed(mistral(), sequences, 1);
  const TokenLayout& layout = sequences[0].walk.layout();
  const int64_t first = sequences[0].prompt.layout->segments[1].begin;
  const at::Tensor image = layout.source_index.index_select(0, (layout.image == 0).nonzero().squeeze(1)) - first;
  EXPECT_TRUE(image.equal(test::int64_tensor({0, 16 + 5 * 9 + 3, 16 + 5 * 9 + 8}))) << image.cpu();
}

// ---- signals of the vision tower ----

// Asks for what the tower has and keeps everything.
class TowerReader final : public PruningPolicy {
 public:
  std::string spec() const override { return "tower_reader"; }
  std::vector<Step> steps(const ModelFacts&, const PromptLayout&) const override {
    const AttentionProbe probe{.layer = 1, .rows = AttentionProbe::Rows::kClass, .heads = AttentionProbe::Heads::kEach};
    return {
        {.at = {Site::kVisionOutput},
         .needs = [probe](const TokenLayout&) -> std::vector<Signal> {
           return {probe, Tap{Tap::What::kVisionKey, 1}, Tap{Tap::What::kVisionOutput}, Tap{Tap::What::kVisionClass}};
         },
         .decide =
             [this](const TokenLayout& layout, std::span<const at::Tensor> signals) {
               seen.assign(signals.begin(), signals.end());
               return Verdict{.kept = at::arange(layout.num_image_tokens(), at::kLong)};
             }}};
  }
  mutable std::vector<at::Tensor> seen;
};

// Each column belongs to the patch that stands there in the sequence: crop by crop from the tower itself.
TEST(NextSignals, OfTheTowerFollowTheSequence) {
  const c10::InferenceMode no_gradients;
  const LoadedModel& model = mistral();
  const auto reader = std::make_shared<TowerReader>();
  Sequence sequence = test::sequence_for(model, mixed_prompt(), reader);
  encode(model, sequence);
  ASSERT_EQ(reader->seen.size(), 4U);
  const VisionFacts& tower = model.config.vision;
  int64_t column = 0, class_row = 0;
  for (size_t image = 0; image < sequence.prompt.images.size(); ++image) {
    const ImagePlan& plan = sequence.prompt.plans[image];
    const at::Tensor pixels = model.front_end.pixels(plan, *sequence.prompt.images[image].image);
    VisionLayerTrace trace;
    const VisionFeatures features = model.front_end.tower(
        plan, pixels, tower.num_layers, [&](const VisionLayerTrace& t) { trace = t.layer == 1 ? t : trace; });
    const int64_t grid = plan.shape.grid.cols, crops = pixels.size(0), p1 = grid * grid + 1;
    const at::Tensor q = trace.query.view({crops, p1, tower.num_heads, -1}),
                     k = trace.key.view({crops, p1, tower.num_heads, -1});
    for (const Segment& s : sequence.prompt.layout->segments) {
      if (s.kind != Segment::Kind::kPatches || s.image != static_cast<int>(image)) continue;
      for (int64_t t = 0; t < s.end - s.begin; ++t, ++column) {
        const int64_t patch = (s.origin.rows + t / s.grid.cols) * grid + s.origin.cols + t % s.grid.cols;
        EXPECT_LT(test::relative_error(reader->seen[1][column], k[s.crop][patch + 1].flatten()).max, 1e-5);
        EXPECT_LT(test::relative_error(reader->seen[2][column], features.patches[s.crop][patch]).max, 1e-5);
        for (int64_t h = 0; h < tower.num_heads; ++h) {
          const at::Tensor scores = k[s.crop].select(1, h).mv(q[s.crop][0][h]) / std::sqrt(double(tower.head_dim()));
          EXPECT_NEAR(reader->seen[0][h][column].item<double>(),
                      at::softmax(scores.to(at::kDouble), 0)[patch + 1].item<double>(), 1e-5);
        }
      }
    }
    for (int64_t crop = 0; crop < crops; ++crop, ++class_row)
      EXPECT_LT(test::relative_error(reader->seen[3][class_row], features.classes[crop]).max, 1e-5);
  }
  EXPECT_EQ(reader->seen[0].size(1), column);
  EXPECT_EQ(reader->seen[3].size(0), class_row);
}

// A picture whose tiles are cut away altogether leaves class rows behind, and the next picture's stay its own.
TEST(NextSignals, ClassRowsBehindCropsThatAreCutAway) {
  const c10::InferenceMode no_gradients;
  for (const LoadedModel* model : {&mistral(), &vicuna()}) {
    const auto front_of_second_image = [&](const Prompt& prompt, int image) {
      Sequence sequence = test::sequence_for(*model, prompt, make_policy("visionzip:num_kept=4,contextual=1"));
      encode(*model, sequence);
      const at::Tensor own = (sequence.walk.layout().image == image).nonzero().squeeze(1);
      return sequence.stream.hidden.index_select(0, own).clone();
    };
    const at::Tensor alone = front_of_second_image(prompt_of({{60, 70}}), 0);
    Chat line_first = prompt_of({{700, 1}, {60, 70}});
    EXPECT_LT(test::relative_error(front_of_second_image(line_first, 1), alone).max, 1e-4);
  }
}

// ---- batches ----

TEST(NextBatch, PackedRequestsEqualEachAlone) {
  for (const LoadedModel* model : {&mistral(), &vicuna()}) {
    SCOPED_TRACE(model->folder.filename());
    const std::vector<std::pair<Prompt, const char*>> requests = {
        {mixed_prompt(), "catp:keep_ratio=2/9"},
        {RawPrompt{"How are you? Count: 1, 2, 3.", {}, {}}, "fastv:keep_ratio=1/2"},
        {prompt_of({{61, 64}}), "none"},
        {prompt_of({{36, 310}}), "hired:keep_ratio=1/5"},
        {prompt_of({{100, 100}, {30, 300}}), "m3:keep_ratio=1/4"},
        {prompt_of({{90, 90}}), "divprune:keep_ratio=1/3 + fastv:keep_ratio=1/8,layer=4"}};
    std::vector<Sequence> packed;
    for (const auto& [prompt, spec] : requests) packed.push_back(test::sequence_for(*model, prompt, make_policy(spec)));
    const std::vector<Answered> together = test::run_packed(*model, packed, 9);
    for (size_t i = 0; i < requests.size(); ++i) {
      SCOPED_TRACE(requests[i].second);
      std::vector<Sequence> alone;
      alone.push_back(test::sequence_for(*model, requests[i].first, make_policy(requests[i].second)));
      const Answered single = test::run_packed(*model, alone, 9)[0];
      EXPECT_EQ(single.answer, together[i].answer);
      EXPECT_EQ(alone[0].walk.kept_sources(), packed[i].walk.kept_sources());
      for (size_t step = 0; step < single.logits.size(); ++step)
        EXPECT_LT(test::relative_error(together[i].logits[step], single.logits[step]).max, 3e-5) << step;
    }
  }
}

// ---- checkpoints ----

test::Arrays dumped(const std::filesystem::path& checkpoint, const char* of) {
  const LoadedModel model = load_model(checkpoint, {.dtype = ComputeDtype::kFloat32, .on_progress = {}});
  const test::ScratchFolder out;
  dump(model, test::GoldenCase("single", of).request(), out.path() / "run", {}, {});
  return test::read_arrays(out.path() / "run.safetensors");
}

void expect_same_run(const std::filesystem::path& checkpoint, const char* of) {
  const test::Arrays mine = dumped(checkpoint, of), expected = dumped(test::golden_folder() / of, of);
  for (const char* name : {"input_ids", "pixel_values", "image_features", "logits", "greedy_tokens"})
    EXPECT_TRUE(mine.at(name).equal(expected.at(name))) << name;
}

std::string new_name(const std::string& name) {  // of 4.52 and later
  if (name == "language_model.lm_head.weight") return "lm_head.weight";
  const std::string old = "language_model.model.";
  return name.starts_with(old) ? "model.language_model." + name.substr(old.size()) : "model." + name;
}

TEST(NextCheckpoint, NewNamesInOneFile) {
  DerivedCheckpoint checkpoint("llava_next_mistral");  // old names in shards
  checkpoint.rename(new_name);
  checkpoint.write();
  expect_same_run(checkpoint.path(), "llava_next_mistral");
}

TEST(NextCheckpoint, OldNamesInShards) {
  DerivedCheckpoint checkpoint("llava_next_vicuna");  // new names in one file
  checkpoint.rename([](const std::string& name) {
    const std::string now = "model.language_model.";
    if (name == "lm_head.weight") return "language_model." + name;
    return name.starts_with(now) ? "language_model.model." + name.substr(now.size()) : name.substr(6);
  });
  checkpoint.write_shards(2);
  expect_same_run(checkpoint.path(), "llava_next_vicuna");
}

TEST(NextCheckpoint, OldStyleConfigMeansTheSame) {
  DerivedCheckpoint checkpoint("llava_next_vicuna");
  checkpoint.write();
  nlohmann::json config = nlohmann::json::parse(test::read_file(checkpoint.path() / "config.json"));
  ASSERT_TRUE(config["text_config"].contains("rope_parameters"));  // of a save by Transformers 5
  checkpoint.patch("config.json", {{"dtype", nullptr},
                                   {"torch_dtype", "float16"},
                                   {"text_config", {{"dtype", nullptr}, {"rope_parameters", nullptr}}},
                                   {"vision_config", {{"hidden_act", nullptr}, {"layer_norm_eps", nullptr}}},
                                   {"projector_hidden_act", nullptr},
                                   {"multimodal_projector_bias", nullptr},
                                   {"vision_feature_layer", nullptr}});
  expect_same_run(checkpoint.path(), "llava_next_vicuna");
}

TEST(NextCheckpoint, StoredInBfloat16) {
  DerivedCheckpoint checkpoint("llava_next_vicuna");
  checkpoint.map([](const std::string&, const at::Tensor& t) { return t.to(at::kBFloat16); });
  checkpoint.patch("config.json", {{"dtype", "bfloat16"}, {"text_config", {{"dtype", "bfloat16"}}}});
  checkpoint.write();
  EXPECT_EQ(load_model(checkpoint.path(), EngineOptions{}).dtype, at::kBFloat16);
  const auto error =
      test::relative_error(dumped(checkpoint.path(), "llava_next_vicuna").at("logits"),
                           dumped(test::golden_folder() / "llava_next_vicuna", "llava_next_vicuna").at("logits"));
  EXPECT_LT(error.max, 0.8);
  EXPECT_LT(error.rms, 0.1);
  EXPECT_GT(error.rms, 1e-4);
}

std::string refusal(const DerivedCheckpoint& checkpoint) {
  return message_of<Error>([&] { load_model(checkpoint.path(), EngineOptions{}); });
}

TEST(NextCheckpoint, WithoutImageNewline) {
  DerivedCheckpoint checkpoint("llava_next_mistral");
  checkpoint.weights.erase("image_newline");
  checkpoint.write();
  expect_says(refusal(checkpoint), {checkpoint.path().c_str(), "the weights lack image_newline"});
}

TEST(NextCheckpoint, ImpossiblePinpoints) {
  DerivedCheckpoint checkpoint("llava_next_mistral");
  checkpoint.write();
  const auto with = [&](const char* pinpoints) {
    checkpoint.patch("config.json", {{"image_grid_pinpoints", nlohmann::json::parse(pinpoints)}});
    return refusal(checkpoint);
  };
  expect_says(with("[[56, 100]]"), {"config.json", "image_grid_pinpoints", "[56, 100]", "tiles of 56"});
  expect_says(with("[[0, 56]]"), {"image_grid_pinpoints", "[0, 56]"});
  expect_says(with("[[56, -56]]"), {"image_grid_pinpoints"});
  expect_says(with("[[56]]"), {"image_grid_pinpoints", "pairs", "[56]"});
  expect_says(with("[]"), {"image_grid_pinpoints", "empty"});
  expect_says(with("56"), {"image_grid_pinpoints", "pairs"});
  expect_says(with("[[56, 112]]"), {"preprocessor_config.json", "image_grid_pinpoints", "config.json"});
}

TEST(NextCheckpoint, ProcessorsThatContradictTheModel) {
  DerivedCheckpoint checkpoint("llava_next_mistral");
  checkpoint.write();
  checkpoint.patch("preprocessor_config.json", {{"image_processor_type", "CLIPImageProcessor"}, {"do_pad", false}});
  expect_says(refusal(checkpoint), {"preprocessor_config.json", "LlavaNextImageProcessor was expected"});
  DerivedCheckpoint plain;
  plain.write();
  plain.patch("preprocessor_config.json", {{"image_processor_type", "LlavaNextImageProcessor"},
                                           {"image_grid_pinpoints", nlohmann::json::parse("[[56, 112]]")}});
  expect_says(refusal(plain), {"preprocessor_config.json", "without tiles"});
}

TEST(NextCheckpoint, PreparedPixelsOfOtherPictures) {
  const test::GoldenCase single("single", "llava_next_mistral"), wide("wide", "llava_next_mistral");
  const test::ScratchFolder out;
  expect_says(message_of<Error>([&] { dump(mistral(), wide.request(), out.path() / "run", single.tensors, {}); }),
              {"pixel values", "[1, 4, 3, 56, 56]", "[1, 5, 3, 56, 56]"});
}

TEST(NextPrompt, TooManyPositions) {
  const int64_t limit = vicuna().config.decoder.max_positions;
  std::string text;
  std::vector<ImagePart> images;
  for (int i = 0; i < 30; ++i) {
    text += "<image>";
    images.push_back({.image = picture(84, 84, 3), .pins = {}});
  }
  const int64_t n = pack_prompt(vicuna(), RawPrompt{text, images, {}}, 0).layout->num_tokens;
  EXPECT_NO_THROW(pack_prompt(vicuna(), RawPrompt{text, images, {}}, limit - n));
  expect_says(message_of<Error>([&] {
                pack_prompt(vicuna(), RawPrompt{text, images, {}}, limit - n + 1);
              }),
              {"positions", std::to_string(limit).c_str()});
}

}  // namespace
}  // namespace espalier
