// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "tests/cli/golden_case.h"
#include "tests/cli/run_espalier.h"
#include "tests/support/policy_plugin.h"

namespace espalier::test {
namespace {

using nlohmann::json;

class Recording : public testing::Test {
 protected:
  void record(const Arguments& more) {
    output_of(Arguments{"record", "--model", kModel, "--dtype", "f32", "--signals", signals_, "--layout", layout_} +
              golden_.prompt(folder_) + more);
  }

  std::map<std::string, TensorView> tensors() const { return SafetensorsFile::open(signals_).tensors(); }

  const GoldenCase golden_{"icl4"};
  const int64_t n_ = std::ssize(golden_.json["input_ids"]);
  TemporaryFolder folder_;
  const std::string signals_ = folder_ / "s.safetensors", layout_ = folder_ / "l.json";
};

TEST_F(Recording, HoldsTheTableOfTheContract) {
  record({});
  const auto all = tensors();
  const auto shape = [&](const std::string& name) {
    return all.contains(name) ? all.at(name).shape : std::vector<int64_t>{-1};
  };
  using Shape = std::vector<int64_t>;
  for (const std::string layer : {"0", "7"}) {
    EXPECT_EQ(shape("hidden." + layer), (Shape{n_, 128}));
    EXPECT_EQ(shape("final_norm." + layer), (Shape{n_, 128}));
    EXPECT_EQ(shape("attention." + layer), (Shape{4, n_, n_}));
    EXPECT_EQ(shape("query." + layer), (Shape{4, n_, 32}));
    EXPECT_EQ(shape("key." + layer), (Shape{4, n_, 32}));
  }
  EXPECT_EQ(shape("hidden.8"), (Shape{n_, 128}));
  EXPECT_EQ(shape("hidden.9"), Shape{-1});
  EXPECT_EQ(shape("vision.output"), (Shape{80, 64}));
  EXPECT_EQ(shape("vision.cls_output"), (Shape{5, 64}));
  EXPECT_EQ(shape("vision.cls_attention.2"), (Shape{4, 80}));
  EXPECT_EQ(shape("vision.cls_attention_joint.2"), (Shape{80}));
  EXPECT_EQ(shape("vision.key.2"), (Shape{80, 64}));
  EXPECT_EQ(shape("vision.attention.2.4").size(), 3u);
  for (const auto& [name, view] : all) EXPECT_EQ(view.dtype, Dtype::kF32) << name;
}

TEST_F(Recording, LayoutNamesTheExamples) {
  record({"--only", "hidden.0"});
  const json layout = read_json(layout_);
  EXPECT_EQ(layout["num_tokens"], n_);
  EXPECT_EQ(layout["query_example"], 4);
  EXPECT_EQ(layout["model"], (json{{"num_layers", 8}, {"vision_layers", 4}, {"vision_feature_layer", 2}}));
  EXPECT_EQ(layout["images"].size(), 5u);
  EXPECT_EQ(layout["images"][0], (json{{"grid", {4, 4}}}));
  int64_t end = 0;
  size_t image = 0;
  for (const json& segment : layout["segments"]) {
    EXPECT_EQ(segment["begin"], end);
    end = segment["end"];
    if (segment["kind"] != "patches") continue;
    EXPECT_EQ(segment["begin"], golden_.json["image_spans"][image][0]);
    EXPECT_EQ(segment["image"], image);
    EXPECT_EQ(segment["example"], image);
    ++image;
  }
  EXPECT_EQ(end, n_);
  EXPECT_EQ(image, 5u);
  EXPECT_EQ(layout["segments"][0]["example"], -1);  // <s>
}

TEST_F(Recording, OnlyLimitsIt) {
  record({"--only", "hidden.3", "vision.key"});
  std::vector<std::string> names;
  for (const auto& [name, view] : tensors()) names.push_back(name);
  EXPECT_EQ(names,
            (std::vector<std::string>{"hidden.3", "vision.key.0", "vision.key.1", "vision.key.2", "vision.key.3"}));
}

// The attention that eager Transformers computes, on pixels that differ by a grey level here and there.
TEST_F(Recording, AttentionIsTheReferences) {
  record({"--only", "attention"});
  const auto mine = tensors();
  const auto golden = SafetensorsFile::open(golden_.tensors_file).tensors();
  for (int layer = 0; layer < 8; ++layer) {
    const std::vector<double> maps = numbers(mine.at("attention." + std::to_string(layer)));
    const std::vector<double> last = numbers(golden.at("attn." + std::to_string(layer) + ".last_row"));
    for (int64_t head = 0; head < 4; ++head)
      for (int64_t column = 0; column < n_; ++column)
        ASSERT_NEAR(maps[static_cast<size_t>((head * n_ + n_ - 1) * n_ + column)],
                    last[static_cast<size_t>(head * n_ + column)], 5e-3)
            << layer << ' ' << head << ' ' << column;
  }
}

class Replay : public Recording, public testing::WithParamInterface<const char*> {};

// Live, recorded with the policy and replayed, recorded without it and replayed up to its first act: one answer.
TEST_P(Replay, KeepsWhatTheLiveRunKept) {
  const std::string policy = GetParam();
  const json live = json_of(Arguments{"generate", "--model", kModel, "--dtype", "f32", "--policy", policy,
                                      "--max-new-tokens", "1", "--json"} +
                            golden_.prompt(folder_));
  record({"--policy", policy});
  const std::string out = folder_ / "r.json";
  output_of({"replay", "--policy", policy, "--signals", signals_, "--layout", layout_, "--out", out});
  const json replayed = read_json(out);
  ASSERT_FALSE(live["points"].empty());
  ASSERT_EQ(replayed["points"].size(), live["points"].size());
  for (size_t i = 0; i < live["points"].size(); ++i) {
    EXPECT_EQ(replayed["points"][i]["site"], live["points"][i]["site"]);
    EXPECT_EQ(replayed["points"][i]["kept"], live["points"][i]["kept"]);
  }
  EXPECT_EQ(replayed["kept"], live["kept"]);
  EXPECT_LT(replayed["kept"].size(), 80u);
  record({});
  output_of({"replay", "--policy", policy, "--signals", signals_, "--layout", layout_, "--out", out});
  EXPECT_EQ(read_json(out)["points"][0]["kept"], live["points"][0]["kept"]);
}

// Signals that were recorded without it, under a policy of one's own, also in sequence with another.
TEST_F(Recording, IsReplayedUnderAPlugin) {
  const Arguments plugin = {"--policy-plugin", policy_plugin().string()};
  record({});
  const std::string out = folder_ / "r.json";
  for (const char* policy : {"keep_centre:share=1/2", "keep_centre:share=1/2 + fastv:num_kept=3,layer=2"}) {
    output_of(Arguments{"replay", "--policy", policy, "--signals", signals_, "--layout", layout_, "--out", out} +
              plugin);
    const json live = json_of(Arguments{"generate", "--model", kModel, "--dtype", "f32", "--policy", policy, "--json"} +
                              golden_.prompt(folder_) + plugin + Arguments{"--max-new-tokens", "1"});
    const json replayed = read_json(out);
    EXPECT_EQ(replayed["policy"], live["policy"]);
    EXPECT_EQ(replayed["points"][0]["kept"], live["points"][0]["kept"]);
    EXPECT_EQ(replayed["points"][0]["kept"].size(), 20U) << "of five pictures of 4 x 4 patches the middle 2 x 2";
  }
}

// What the files say of themselves: the number of their form, and whose signals they are.
TEST_F(Recording, FilesNameTheirForm) {
  record({"--only", "hidden.0", "--policy", "fastv:keep_ratio=1/2"});
  EXPECT_EQ(read_json(layout_)["schema"], 1);
  const auto metadata = SafetensorsFile::open(signals_).metadata();
  EXPECT_EQ(metadata.at("format"), "espalier.signals");
  EXPECT_EQ(metadata.at("schema"), "1");
  EXPECT_EQ(metadata.at("policy"), "fastv:keep_ratio=1/2");
  EXPECT_EQ(metadata.at("model"), "llava15");
  record({});
  const std::string out = folder_ / "r.json";
  output_of(
      {"replay", "--policy", "prumerge:keep_ratio=1/2", "--signals", signals_, "--layout", layout_, "--out", out});
  EXPECT_EQ(read_json(out)["schema"], 1);
  EXPECT_EQ(SafetensorsFile::open(folder_ / "r.safetensors").metadata().at("policy"), "prumerge:keep_ratio=1/2");
}

INSTANTIATE_TEST_SUITE_P(Policies, Replay,
                         testing::Values("random:keep_ratio=1/3,seed=5", "fastv:keep_ratio=1/2",
                                         "catp:keep_ratio=2/9,k=3", "catp:num_kept=30,k=4,positions=compact"),
                         [](const auto& chosen) { return "Policy" + std::to_string(chosen.index); });

}  // namespace
}  // namespace espalier::test
