// SPDX-License-Identifier: Apache-2.0
// Qwen2.5-VL beyond its goldens: every on-disk form of the tiny checkpoint gives the same answer, pictures of any size
// become tokens with three-part position ids, recordings replay, and what cannot be is one clear line.
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "espalier/error.h"
#include "espalier/policies/table.h"
#include "recording/record.h"
#include "recording/replay.h"
#include "runtime/generate.h"
#include "runtime/prompt_packer.h"
#include "tests/runtime/derived_checkpoint.h"
#include "tests/runtime/golden_case.h"
#include "tests/support/made_up_files.h"
#include "tests/support/tensors.h"

namespace espalier {
namespace {

using Json = nlohmann::json;
using test::Arrays;
using test::expect_says;
using test::GoldenCase;
using test::message_of;
using Tokens = std::vector<int64_t>;

const LoadedModel& model() {
  return test::tiny_model("qwen25vl");
}

struct Qwen : test::DerivedCheckpoint {
  Qwen() : DerivedCheckpoint("qwen25vl") {}
};

// ---- forms on disk ----

Arrays dumped(const std::filesystem::path& folder, ComputeDtype dtype = ComputeDtype::kFloat32) {
  const test::ScratchFolder out;
  const LoadedModel loaded = load_model(folder, {.dtype = dtype, .on_progress = {}});
  dump(loaded, GoldenCase("pair", "qwen25vl").request(), out.path() / "run", {}, {});
  return test::read_arrays(out.path() / "run.safetensors");
}

const Arrays& reference() {
  static const Arrays arrays = dumped(test::golden_folder() / "qwen25vl");
  return arrays;
}

void expect_same_run(const std::filesystem::path& folder) {
  const Arrays mine = dumped(folder);
  for (const char* name : {"pixel_values", "image_features", "hidden.8", "logits"})
    test::expect_same(mine.at(name), reference().at(name), name);
  EXPECT_TRUE(mine.at("greedy_tokens").equal(reference().at("greedy_tokens")));
}

std::string new_name(const std::string& old) {
  if (old.starts_with("model.")) return "model.language_model." + old.substr(6);
  return old.starts_with("visual.") ? "model." + old : old;
}

// The config as newer saves write it: the decoder in text_config, other names for the same things.
void nest_config(const Qwen& checkpoint) {
  const Json flat = Json::parse(test::read_file(checkpoint.path() / "config.json"));
  Json text = {{"model_type", "qwen2_5_vl_text"}, {"dtype", "bfloat16"}}, patch = {{"torch_dtype", nullptr}};
  for (const char* key :
       {"hidden_size", "intermediate_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers",
        "num_key_value_heads", "rms_norm_eps", "hidden_act", "vocab_size", "use_sliding_window", "sliding_window"}) {
    text[key] = flat.at(key);
    patch[key] = nullptr;
  }
  text["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 1e6}, {"mrope_section", {2, 3, 3}}};
  patch["rope_scaling"] = patch["rope_theta"] = nullptr;
  patch["text_config"] = text;
  patch["vision_config"] = {{"in_chans", nullptr}, {"in_channels", 3}, {"model_type", "qwen2_5_vl_vision"}};
  checkpoint.patch("config.json", patch);
}

TEST(QwenCheckpoint, NewNamesAndNestedConfig) {
  Qwen checkpoint;
  checkpoint.rename(new_name);
  checkpoint.write();
  nest_config(checkpoint);
  checkpoint.patch("preprocessor_config.json", {{"min_pixels", nullptr},
                                                {"max_pixels", nullptr},
                                                {"size", {{"shortest_edge", 3136}, {"longest_edge", 112 * 112}}}});
  expect_same_run(checkpoint.path());
}

TEST(QwenCheckpoint, Shards) {
  Qwen checkpoint;
  checkpoint.write_shards(3);
  expect_same_run(checkpoint.path());
}

TEST(QwenCheckpoint, TiedHead) {
  Qwen untied, tied, tied_in_text;
  untied.weights["lm_head.weight"] = untied.weights.at("model.embed_tokens.weight");
  untied.write();
  tied.weights.erase("lm_head.weight");
  tied.write();
  tied.patch("config.json", {{"tie_word_embeddings", true}});
  const at::Tensor expected = dumped(untied.path()).at("logits");
  test::expect_same(dumped(tied.path()).at("logits"), expected);
  tied_in_text.weights.erase("lm_head.weight");
  tied_in_text.write();
  nest_config(tied_in_text);
  tied_in_text.patch("config.json", {{"text_config", {{"tie_word_embeddings", true}}}});
  test::expect_same(dumped(tied_in_text.path()).at("logits"), expected);
}

TEST(QwenCheckpoint, ComputedInBfloat16) {
  const Arrays half = dumped(test::golden_folder() / "qwen25vl", ComputeDtype::kBFloat16);
  const test::RelativeError features =
      test::relative_error(half.at("image_features"), reference().at("image_features"));
  EXPECT_LT(features.rms, 0.05);
  const test::RelativeError logits = test::relative_error(half.at("logits"), reference().at("logits"));
  EXPECT_LT(logits.rms, 0.1);
  EXPECT_GT(logits.rms, 1e-4);
}

TEST(QwenCheckpoint, StoredInFloat32) {
  Qwen wide;
  wide.map([](const std::string&, const at::Tensor& t) { return t.to(at::kFloat); });
  wide.patch("config.json", {{"torch_dtype", "float32"}});
  wide.write();
  expect_same_run(wide.path());
}

TEST(QwenCheckpoint, RefusesWhatDoesNotFit) {
  const auto refusal = [](const std::string& file, const Json& patch) {
    Qwen checkpoint;
    checkpoint.patch(file, patch);
    checkpoint.write();
    return message_of<Error>([&] { load_model(checkpoint.path(), EngineOptions{}); });
  };
  expect_says(refusal("preprocessor_config.json", {{"patch_size", 16}}),
              {"preprocessor_config.json", "patch_size: 16", "has 14"});
  expect_says(refusal("preprocessor_config.json", {{"merge_size", 1}}), {"merge_size: 1", "has 2"});
  expect_says(refusal("preprocessor_config.json", {{"temporal_patch_size", 1}}), {"temporal_patch_size: 1", "has 2"});
  expect_says(refusal("preprocessor_config.json", {{"image_processor_type", "CLIPImageProcessor"}}),
              {"expected Qwen2VLImageProcessor"});
  expect_says(refusal("config.json", {{"vision_config", {{"window_size", 14}}}}), {"window_size", "28"});
  expect_says(refusal("config.json", {{"intermediate_size", 129}}), {"mlp.gate_proj.weight", "[129, 64]"});
}

// ---- prompts ----

Prompt with_pictures(const std::vector<std::pair<int, int>>& sizes) {
  Message turn{"user", {}};
  for (const auto& [width, height] : sizes)
    turn.content.emplace_back(ImagePart{.image = test::picture(width, height, 3), .pins = {}});
  turn.content.emplace_back(TextPart{"What is it?"});
  return Chat{{turn}};
}

Tokens row_of(const at::Tensor& t, int64_t row) {
  const at::Tensor values = t[row].contiguous();
  return {values.const_data_ptr<int64_t>(), values.const_data_ptr<int64_t>() + values.numel()};
}

// A picture of 2 x 3 tokens: one time, rows and columns from there, and text goes on behind the longer side.
TEST(QwenPrompt, PositionIdsOfAPicture) {
  const PackedPrompt packed = pack_prompt(model(), with_pictures({{84, 56}}), 1);
  const PromptLayout& layout = *packed.layout;
  ASSERT_EQ(layout.images.size(), 1u);
  EXPECT_EQ(layout.images[0].grid, (GridSize{2, 3}));
  ASSERT_EQ(layout.segments.size(), 4u);  // system, the turn up to the picture, the picture, what follows
  const Segment& picture = layout.segments[2];
  const int64_t p = picture.begin, end = picture.end, n = layout.num_tokens;
  const Tokens time = row_of(layout.position_id, 0), height = row_of(layout.position_id, 1),
               width = row_of(layout.position_id, 2);
  EXPECT_EQ(Tokens(time.begin() + p - 1, time.begin() + end + 1), (Tokens{p - 1, p, p, p, p, p, p, p + 3}));
  EXPECT_EQ(Tokens(height.begin() + p - 1, height.begin() + end + 1),
            (Tokens{p - 1, p, p, p, p + 1, p + 1, p + 1, p + 3}));
  EXPECT_EQ(Tokens(width.begin() + p - 1, width.begin() + end + 1),
            (Tokens{p - 1, p, p + 1, p + 2, p, p + 1, p + 2, p + 3}));
  EXPECT_EQ(packed.next_position, n - 6 + 3);
}

TEST(QwenPrompt, DecodingGoesOnWhereTransformersDoes) {
  for (const char* name : {"single", "pair", "pair_raw", "icl4", "eight", "wide", "tall", "scripts", "text_only"}) {
    SCOPED_TRACE(name);
    const GoldenCase golden(name, "qwen25vl");
    const PackedPrompt packed = pack_prompt(model(), golden.prompt(), 1);
    const Arrays expected = test::read_arrays(golden.tensors);
    EXPECT_TRUE(packed.layout->position_id.equal(expected.at("position_ids")));
    EXPECT_EQ(packed.next_position - packed.layout->num_tokens, expected.at("rope_delta").item<int64_t>());
  }
}

TEST(QwenPrompt, TokensKnowTheirPlaceOnThePicture) {
  const PackedPrompt packed = pack_prompt(model(), with_pictures({{90, 60}}), 1);
  const Segment& picture = packed.layout->segments[2];
  ASSERT_EQ(picture.grid, (GridSize{2, 3}));
  const PixelBox last = packed.layout->pixel_box(picture.end - 1).value();
  EXPECT_NEAR(last.x0, 60, 1e-9);
  EXPECT_NEAR(last.y0, 30, 1e-9);
  EXPECT_NEAR(last.x1, 90, 1e-9);
  EXPECT_NEAR(last.y1, 60, 1e-9);
}

TEST(QwenPrompt, RefusesPicturesThatCannotBeShown) {
  const auto refusal = [](const Prompt& prompt, int64_t new_tokens = 1) {
    return message_of<Error>([&] { pack_prompt(model(), prompt, new_tokens); });
  };
  expect_says(refusal(with_pictures({{60, 60}, {2001, 10}})), {"prompt", "image 1", "2001x10", "200 : 1"});
  expect_says(refusal(with_pictures({{0, 60}})), {"image 0", "no pixels"});
  expect_says(refusal(with_pictures({{60, 60}}), 2048), {"limit of 2048 positions"});
}

// The limit is one of positions: a picture takes as many as its longer side has tokens.
TEST(QwenPrompt, PicturesTakeFewerPositionsThanTokens) {
  const Prompt prompt = with_pictures({{112, 112}, {112, 112}});
  const PackedPrompt packed = pack_prompt(model(), prompt, 1);
  EXPECT_EQ(packed.next_position, packed.layout->num_tokens - 2 * 16 + 2 * 4);
  EXPECT_NO_THROW(pack_prompt(model(), prompt, 2048 - packed.next_position));
  EXPECT_THROW(pack_prompt(model(), prompt, 2049 - packed.next_position), Error);
}

// ---- generation ----

// Without options the checkpoint's generation_config.json counts: its penalty, and a temperature near 0.
TEST(QwenGeneration, DefaultsPenaliseRepetition) {
  int changed = 0;  // answers that the penalty makes another
  for (const char* name : {"single", "icl4", "tall", "scripts", "text_only"}) {
    SCOPED_TRACE(name);
    const GoldenCase golden(name, "qwen25vl");
    Request request = golden.request();
    request.options.greedy = false;
    const Result result = generate(model(), request);
    const at::Tensor expected = test::read_arrays(golden.tensors).at("penalised_tokens");
    EXPECT_EQ(std::vector<int64_t>(result.token_ids.begin(), result.token_ids.end()),
              std::vector<int64_t>(expected.const_data_ptr<int64_t>(),
                                   expected.const_data_ptr<int64_t>() + expected.numel()));
    changed += result.token_ids != golden.json.at("greedy_tokens").get<std::vector<int32_t>>();
  }
  EXPECT_GE(changed, 3);
}

TEST(QwenGeneration, StopsAtAnyOfItsEnds) {
  Qwen checkpoint;
  checkpoint.write();
  const GoldenCase golden("single", "qwen25vl");
  const auto answer = golden.json.at("greedy_tokens").get<std::vector<int32_t>>();
  checkpoint.patch("generation_config.json", {{"eos_token_id", {1015, answer[3]}}});
  const LoadedModel loaded = load_model(checkpoint.path(), {.dtype = ComputeDtype::kFloat32, .on_progress = {}});
  Request request = golden.request();
  request.options.ignore_eos = false;
  const Result result = generate(loaded, request);
  EXPECT_EQ(result.finish_reason, FinishReason::kEos);
  EXPECT_EQ(result.token_ids, std::vector<int32_t>(answer.begin(), answer.begin() + 4));
}

// ---- signals, recordings ----

// Of a run with the policy on two pictures of different grids; empty when it went through.
std::string refusal_of(const std::string& policy) {
  Request request{
      .prompt = with_pictures({{112, 56}, {56, 112}}), .policy = policy, .custom = {}, .options = {}, .trace = false};
  request.options.max_new_tokens = 2;
  try {
    generate(model(), request);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(QwenPolicies, FactsOfTheModel) {
  EXPECT_FALSE(model().facts.has_class_token);
  EXPECT_TRUE(model().facts.has_mrope);
  EXPECT_EQ(model().facts.vision_hidden_size, 4 * 40);  // what the projector reads: four patches a token
  EXPECT_EQ(model().facts.vision_feature_layer, 4);
}

// The table is right about this model: a policy runs on pictures of any grid, or says what it lacks.
TEST(QwenPolicies, RunOrSayWhatTheyLack) {
  for (const PolicyEntry& entry : policy_table()) {
    if (entry.name == "keepmask" || entry.name == "fitprune") continue;  // their files are for another prompt
    const std::string spec(entry.examples[0].spec);
    SCOPED_TRACE(spec);
    EXPECT_EQ(entry.refusal(model().facts).empty(), entry.needs.find("class attention") == std::string_view::npos);
    if (entry.refusal(model().facts).empty())
      EXPECT_EQ(refusal_of(spec), "");
    else
      expect_says(refusal_of(spec), {std::string(entry.name).c_str(), "class token"});
  }
}

// resize changes pictures before anything is recorded; m3 wants grids that its cells divide.
std::vector<std::string> policies_that_run() {
  return test::examples_where([](const PolicyEntry& entry, const PolicyExample& example) {
    return entry.name != "resize" && entry.name != "m3" &&
           entry.needs.find("class attention") == std::string_view::npos &&
           example.spec.find(".json") == std::string_view::npos;
  });
}

class QwenReplayTest : public testing::TestWithParam<std::string> {};

TEST_P(QwenReplayTest, KeepsWhatTheLiveRunKept) {
  const test::ScratchFolder folder;
  const RecordFiles files{
      .signals = folder.path() / "signals.safetensors", .layout = folder.path() / "layout.json", .only = {}};
  const Prompt prompt = test::in_context_prompt(3);
  Request request{.prompt = prompt, .policy = GetParam(), .custom = {}, .options = {}, .trace = true};
  request.options.max_new_tokens = 1;
  record(model(), request, files, {});
  replay(make_policy(GetParam()),
         {.signals = files.signals, .layout = files.layout, .out = folder.path() / "out.json"});
  const Json replayed = Json::parse(test::read_file(folder.path() / "out.json"));
  const Result live = generate(model(), request);
  EXPECT_EQ(replayed.at("kept").get<Tokens>(), live.kept);
  ASSERT_EQ(replayed.at("points").size(), live.points.size());
  for (size_t i = 0; i < live.points.size(); ++i) {
    const Json& kept = replayed["points"][i].at("kept");
    if (live.points[i].kept_per_head.empty())
      EXPECT_EQ(kept.get<Tokens>(), live.points[i].kept) << i;
    else
      EXPECT_EQ(kept.get<std::vector<Tokens>>(), live.points[i].kept_per_head) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Policies, QwenReplayTest, testing::ValuesIn(policies_that_run()),
                         [](const auto& instance) { return test::test_name(instance.param); });

// A token is merged from four patches: what the projector reads for it are theirs behind each other, and so are keys.
TEST(QwenRecording, HoldsWhatMergedTokensHave) {
  const test::ScratchFolder folder;
  const RecordFiles files{.signals = folder.path() / "s.safetensors", .layout = folder.path() / "l.json", .only = {}};
  const Request request{
      .prompt = with_pictures({{84, 56}, {56, 112}}), .policy = "none", .custom = {}, .options = {}, .trace = false};
  record(model(), request, files, {});
  const Arrays arrays = test::read_arrays(files.signals);
  const int64_t m = 2 * 3 + 4 * 2;
  EXPECT_EQ(arrays.at("vision.output").sizes(), (at::IntArrayRef{m, 4 * 40}));
  for (int layer = 0; layer < 5; ++layer)
    EXPECT_EQ(arrays.at("vision.key." + std::to_string(layer)).sizes(), (at::IntArrayRef{m, 4 * 40}));
  for (const auto& [name, unused] : arrays)
    EXPECT_FALSE(name.starts_with("vision.cls") || name.starts_with("vision.attention")) << name;
  RecordFiles only = files;
  only.only = {"vision.cls_attention.0"};
  expect_says(message_of<Error>([&] { record(model(), request, only, {}); }), {"vision.cls_attention.0"});
}

// Keys of the first layer depend on a patch alone: changing one cell of the picture must change the row of its token.
TEST(QwenRecording, RowsAreThoseOfTheTokens) {
  const auto recorded = [](const Image& image) {
    const test::ScratchFolder folder;
    const RecordFiles files{.signals = folder.path() / "s.safetensors", .layout = folder.path() / "l.json", .only = {}};
    const Message turn{"user", {ImagePart{.image = std::make_shared<const Image>(image), .pins = {}}}};
    const Request request{.prompt = Chat{{turn}}, .policy = "none", .custom = {}, .options = {}, .trace = false};
    record(model(), request, files, {});
    return test::read_arrays(files.signals);
  };
  Image image = *test::picture(84, 112, 5);  // 4 x 3 tokens, more than one window, not resized
  const Arrays before = recorded(image);
  for (int y = 28; y < 2 * 28; ++y) std::fill_n(image.rgb.begin() + 3 * 84 * y, 3 * 28, uint8_t{200});
  const Arrays after = recorded(image);
  const at::Tensor changed = (before.at("vision.key.0") - after.at("vision.key.0")).abs().amax(1) > 1e-4;
  const int64_t token = 3;  // the first of the second row; the third in its window
  EXPECT_TRUE(changed[token].item<bool>());
  EXPECT_EQ(changed.sum().item<int64_t>(), 1);
}

}  // namespace
}  // namespace espalier
