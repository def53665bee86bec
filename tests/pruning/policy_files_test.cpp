// SPDX-License-Identifier: Apache-2.0
// Files that specs name: what is written is read back; what is damaged, misshapen or contradicts itself is refused with
// file, field, what was expected and what came.
#include "recording/policy_files.h"

#include <ATen/ops/full.h>
#include <ATen/ops/rand.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "base/safetensors.h"
#include "tests/support/array_signals.h"
#include "tests/support/temporary_folder.h"

namespace espalier {
namespace {

AtpWeights two_modules() {
  AtpWeights weights;
  weights.settings = {.layers = {2, 5}, .grid = {3, 4}, .strides = {2, 3}, .lambda_sample = 2.5, .norm = AtpNorm::kMax};
  for (int i = 0; i < 2; ++i)
    weights.modules.push_back(
        {at::rand({6, 24}), at::rand({6}), at::rand({1, 6}), at::rand({1}), at::rand({1, 6}), at::rand({1})});
  return weights;
}

void replace(const std::filesystem::path& file, const std::string& from, const std::string& to) {
  std::ifstream in(file);
  std::string text{std::istreambuf_iterator<char>(in), {}};
  ASSERT_NE(text.find(from), std::string::npos) << text;
  text.replace(text.find(from), from.size(), to);
  std::ofstream(file) << text;
}

TEST(PolicyFiles, AtpWeightsAreReadAsTheyWereWritten) {
  const TemporaryFolder folder;
  AtpWeights weights = two_modules();
  write_atp_weights(folder / "atp.safetensors", weights);
  const AtpWeights read = PolicyFilesOnDisk().atp_weights(folder / "atp.safetensors");
  EXPECT_EQ(read.settings, weights.settings);
  ASSERT_EQ(read.modules.size(), 2U);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_TRUE(read.modules[i].mix_weight.equal(weights.modules[i].mix_weight));
    EXPECT_TRUE(read.modules[i].spatial_bias.equal(weights.modules[i].spatial_bias));
  }
  const std::string spec = "atp:weights=" + (folder / "atp.safetensors").string();
  EXPECT_EQ(make_policy(spec)->spec(), spec);
  // Options may repeat what the file says.
  EXPECT_EQ(make_policy(spec + ",layers=2:5,strides=2:3,lambda_sample=2.5,norm=max,min_keep=1")->spec(), spec);
  for (const char* other : {"layers=2:6", "strides=2", "lambda_sample=3", "norm=minmax", "min_keep=2"})
    EXPECT_ERROR(make_policy(spec + "," + other), "atp.safetensors was trained with another value");
  EXPECT_ERROR(make_policy(spec + ",theta_r=0.5"), "not both");
  // Strategy may differ from what was trained, scores may not; files that name neither mean both.
  EXPECT_EQ(make_policy(spec + ",strategy=spatial")->spec(), spec + ",strategy=spatial");
  EXPECT_ERROR(make_policy(spec + ",scores=self"), "atp.safetensors was trained with another value");
  weights.settings.strategy = AtpStrategy::kRedundant;
  weights.settings.scores = AtpScores::kCross;
  write_atp_weights(folder / "atp.safetensors", weights);
  EXPECT_EQ(PolicyFilesOnDisk().atp_weights(folder / "atp.safetensors").settings, weights.settings);
  EXPECT_EQ(make_policy(spec + ",scores=cross,strategy=redundant")->spec(), spec);
  EXPECT_EQ(make_policy(spec + ",strategy=both")->spec(), spec + ",strategy=both");
}

TEST(PolicyFiles, AtpWeightsThatDoNotFitAreRefused) {
  const TemporaryFolder folder;
  const std::filesystem::path file = folder / "atp.safetensors", settings = folder / "atp.json";
  const auto read = [&] { return PolicyFilesOnDisk().atp_weights(file); };
  EXPECT_ERROR(read(), "atp.safetensors");  // neither is there
  AtpWeights weights = two_modules();
  write_atp_weights(file, weights);
  const std::pair<std::pair<const char*, const char*>, const char*> wrong[] = {
      {{"\"hidden_size\": 6", "\"hidden_size\": 7"}, "modules.0.mix.weight: expected shape [7, 24], got [6, 24]"},
      {{"\"format\": 1", "\"format\": 2"}, "field \"format\": expected an integer from 1 to 1, got 2"},
      {{"\"norm\": \"max\"", "\"norm\": \"mean\""}, "field \"norm\""},
      {{"\"head_input\": \"scatter\"", "\"head_input\": \"mean\""}, "modules.0.mix.weight: expected shape [6, 2]"},
      {{"\"lambda_sample\": 2.5", "\"lambda_sample\": null"}, "field \"lambda_sample\""}};
  for (const auto& [change, message] : wrong) {
    write_atp_weights(file, weights);
    replace(settings, change.first, change.second);
    EXPECT_ERROR(read(), message);
  }
  // A module more or fewer in the settings than in the weights.
  write_atp_weights(file, weights);
  replace(settings, "  5\n", "  5,\n  7\n");
  EXPECT_ERROR(read(), "tensor modules.2.mix.weight is missing");
  write_atp_weights(file, weights);
  replace(settings, "2,\n", "");
  EXPECT_ERROR(read(), "belongs to none of the 1 modules");
  weights.modules[1].mix_bias[3] = std::numeric_limits<float>::quiet_NaN();
  write_atp_weights(file, weights);
  EXPECT_ERROR(read(), "modules.1.mix.bias holds a number that is not finite");
  std::filesystem::resize_file(file, 40);
  EXPECT_ERROR(read(), "atp.safetensors");
  write_atp_weights(file, two_modules());
  std::filesystem::remove(settings);
  EXPECT_ERROR(read(), "atp.json");
  const std::vector<float> bias(6);
  const TensorToWrite half{"modules.0.mix.bias", Dtype::kF16, {6}, bias.data()};
  write_atp_weights(file, two_modules());
  write_safetensors(file, std::span(&half, 1));
  EXPECT_ERROR(read(), "modules.0.mix.weight is missing");
}

TEST(PolicyFiles, RecipesReachTheirPolicies) {
  const TemporaryFolder folder;
  const std::string fitprune =
      folder.write("f.json", R"({"method": "fitprune", "model": "m", "layers": 4, "n_visual": 8,
      "reduction": 0.5, "alpha": 0.3, "achieved": 0.47, "delete": [1, 2, 0, 3]})");
  const FitpruneRecipe recipe = PolicyFilesOnDisk().fitprune_recipe(fitprune);
  EXPECT_EQ(recipe.num_visual, 8);
  EXPECT_EQ(recipe.deleted, (std::vector<int64_t>{1, 2, 0, 3}));
  const auto prompt = test::LayoutBuilder().image({2, 4}, 0).text(1, 0).build(0);
  EXPECT_EQ(test::points_of(make_policy("fitprune:recipe=" + fitprune), test::facts(4), *prompt).size(), 3U);
  EXPECT_ERROR(test::points_of(make_policy("fitprune:recipe=" + fitprune), test::facts(8), *prompt), "is for 4 layers");
  const std::string vtw = folder.write(
      "v.json", R"({"method": "vtw", "model": "m", "layers": 8, "layer": 6, "eta": 0.003, "kl": [0.1, 0.002]})");
  const auto points = test::points_of(make_policy("vtw:recipe=" + vtw), test::facts(8), *prompt);
  ASSERT_EQ(points.size(), 1U);
  EXPECT_EQ(points[0].layer, 6);
  EXPECT_EQ(make_policy("vtw:recipe=" + vtw)->spec(), "vtw:recipe=" + vtw);
  EXPECT_ERROR(make_policy("vtw:layer=3,recipe=" + vtw), "not both");
  EXPECT_ERROR(test::points_of(make_policy("vtw:recipe=" + vtw), test::facts(4), *prompt), "is for 8 layers");
  EXPECT_ERROR(make_policy("vtw:recipe=" + fitprune), "field \"method\": expected \"vtw\", got \"fitprune\"");
  EXPECT_ERROR(make_policy("fitprune:recipe=nowhere"), "nowhere");
}

TEST(PolicyFiles, RecipesThatContradictThemselvesAreRefused) {
  const TemporaryFolder folder;
  const auto fitprune = [&](const std::string& fields) {
    return PolicyFilesOnDisk().fitprune_recipe(folder.write("f.json", "{\"method\": \"fitprune\", " + fields + "}"));
  };
  EXPECT_ERROR(fitprune(R"("layers": 2, "n_visual": 4, "delete": [1])"), "2 counts, one a layer");
  EXPECT_ERROR(fitprune(R"("layers": 2, "n_visual": 4, "delete": [3, 2])"), "add up to n_visual=4");
  EXPECT_ERROR(fitprune(R"("layers": 2, "n_visual": 4, "delete": [3, -1])"), "field \"delete\"");
  EXPECT_ERROR(fitprune(R"("layers": 2, "n_visual": 4, "delete": [3, 0.5])"), "field \"delete\"");
  EXPECT_ERROR(fitprune(R"("layers": 0, "n_visual": 4, "delete": [])"), "field \"layers\"");
  EXPECT_ERROR(fitprune(R"("layers": 2, "delete": [1, 1])"), "field \"n_visual\"");
  const auto vtw = [&](const std::string& fields) {
    return PolicyFilesOnDisk().vtw_recipe(folder.write("v.json", "{\"method\": \"vtw\", " + fields + "}"));
  };
  EXPECT_ERROR(vtw(R"("layers": 4, "layer": 5)"), "an integer from 0 to 4, got 5");
  EXPECT_ERROR(vtw(R"("layers": 4)"), "field \"layer\"");
}

TEST(PolicyFiles, KeptSetsAreThoseOfAReplayResult) {
  const TemporaryFolder folder;
  const std::string file = folder.write("kept.json", R"({"policy": "x", "points": [
      {"site": "projector_output", "kept": [1, 2, 5, 6], "candidates": [1], "scores": [0.5]},
      {"site": "projector_output", "kept": [2, 5]},
      {"site": "before_layer", "layer": 3, "kept": [5]},
      {"site": "cache", "layer": 4, "kept": [[5], [5]]}], "kept": [5]})");
  const KeptSets sets = PolicyFilesOnDisk().kept_sets(file);
  ASSERT_EQ(sets.points.size(), 3U);  // of two at one point the last holds
  EXPECT_EQ(sets.points[0].kept, (std::vector<int64_t>{2, 5}));
  EXPECT_EQ(sets.points[1].point, (ActPoint{Site::kBeforeLayer, 3}));
  EXPECT_EQ(sets.points[2].kept_per_head.size(), 2U);
  EXPECT_EQ(make_policy("keepmask:file=" + file)->spec(), "keepmask:file=" + file);
  const auto refused = [&](const std::string& point) {
    return PolicyFilesOnDisk().kept_sets(folder.write("bad.json", "{\"points\": [" + point + "]}"));
  };
  EXPECT_ERROR(refused(R"({"site": "before_layer", "kept": [1]})"), "field \"points[0].layer\"");
  EXPECT_ERROR(refused(R"({"site": "somewhere", "kept": [1]})"), "field \"points[0].site\"");
  EXPECT_ERROR(refused(R"({"site": "projector_output", "kept": [2, 1]})"),
               "points[0].kept\": expected source indices in ascending order, got 2 before 1 at place 0");
  EXPECT_ERROR(refused(R"({"site": "projector_output", "kept": [-1]})"), "field \"points[0].kept\"");
  // Merged tokens: vectors beside the result, and for one without a place whose facts it takes.
  const std::string merged =
      R"({"site": "projector_output", "kept": [], "merged": "merged.0", "merged_source": [-1, 2])";
  EXPECT_ERROR(refused(R"({"site": "projector_output", "kept": [], "merged": "merged.0"})"), "merged_source");
  EXPECT_ERROR(refused(merged + "}"), "field \"points[0].merged_position_from\"");
  EXPECT_ERROR(refused(merged + R"(, "merged_position_from": [1, 2]})"), "bad.safetensors");
  const std::vector<float> values(6, 0.5F);
  write_safetensors(folder / "bad.safetensors",
                    std::vector<TensorToWrite>{{"merged.0", Dtype::kF32, {2, 3}, values.data()}});
  const KeptSets entered = refused(merged + R"(, "merged_position_from": [1, 2]})");
  EXPECT_EQ(entered.points.at(0).vectors.sizes(), (at::IntArrayRef{2, 3}));
  EXPECT_EQ(entered.points[0].position_from, (std::vector<int64_t>{1, 2}));
  write_safetensors(folder / "bad.safetensors",
                    std::vector<TensorToWrite>{{"merged.0", Dtype::kF32, {3, 2}, values.data()}});
  EXPECT_ERROR(refused(merged + R"(, "merged_position_from": [1, 2]})"), "\"merged.0\" with 2 rows");
  EXPECT_ERROR(refused(R"({"site": "cache", "layer": 1, "kept": [1]})"), "points[0]: field \"kept\"");
  EXPECT_ERROR(make_policy("keepmask"), "file is needed");
  EXPECT_ERROR(PolicyFilesOnDisk().kept_sets(folder.write("no.json", "[]")), "expected an object");
}

}  // namespace
}  // namespace espalier
