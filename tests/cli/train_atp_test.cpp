// SPDX-License-Identifier: Apache-2.0
// `espalier train-atp` in real processes on a tiny random checkpoint: killed at any moment it goes on to the same bits;
// Ctrl-C saves; its modules serve `generate`; what is wrong is said in one line.
#include <gtest/gtest.h>
#include <unistd.h>

#include "tests/support/folders.h"

#include "tests/cli/run_espalier.h"

namespace espalier::test {
namespace {

namespace fs = std::filesystem;

const fs::path kModel = golden_folder() / "llava15";

Arguments train(const fs::path& out, const Arguments& more = {}) {
  return Arguments{"train-atp",
                   "--model",
                   kModel.string(),
                   "--suite",
                   "single",
                   "--batch",
                   "2",
                   "--threads",
                   "1",
                   "--dtype",
                   "f32",
                   "--hidden-size",
                   "8",
                   "--evaluation-items",
                   "2",
                   "--evaluate-every",
                   "20",
                   "--out",
                   out.string()} +
         more;
}

int64_t size_or_zero(const fs::path& file) {
  std::error_code code;
  const auto size = fs::file_size(file, code);
  return code ? 0 : static_cast<int64_t>(size);
}

TEST(TrainAtp, KilledAtAnyMomentItGoesOnToTheSameBits) {
  const TemporaryFolder folder;
  const Arguments pace = {"--steps", "30", "--save-every", "3"};
  const std::string said = output_of(train(folder / "whole", pace));
  EXPECT_NE(said.find("atp:weights="), std::string::npos) << said;
  const fs::path killed = folder / "killed", state = killed / "train-atp.safetensors";
  for (const int wait_ms : {0, 90, 310}) {  // from when there is a state: within a step, or while one is written
    const EspalierProcess process(train(killed, pace));
    for (int i = 0; i < 6000 && size_or_zero(state) == 0; ++i) ::usleep(10'000);
    ::usleep(static_cast<useconds_t>(wait_ms) * 1000);
  }  // SIGKILL
  output_of(train(killed, pace));
  for (const char* name : {"train-atp.safetensors", "atp.safetensors"})
    EXPECT_EQ(read_whole(killed / name), read_whole(folder / "whole" / name)) << name;
  // They serve: fewer tokens reach the last layer than the first.
  const auto answer = nlohmann::json::parse(output_of(
      {"generate", "--model", kModel.string(), "--image", (source_folder() / "examples/demo/shape/0.png").string(),
       "--prompt", "what shape?", "--greedy", "--max-new-tokens", "1", "--json", "--policy",
       "atp:weights=" + (killed / "atp.safetensors").string()}));
  const auto& layers = answer["stats"]["tokens_per_layer"];
  EXPECT_LT(layers.back().get<int>(), layers.front().get<int>());
}

TEST(TrainAtp, CtrlCSavesAndSaysSo) {
  const TemporaryFolder folder;
  const fs::path log = folder / "train-atp.log.jsonl";
  EspalierProcess process(train(folder / ".", {"--steps", "100000"}));
  for (int i = 0; i < 6000 && size_or_zero(log) == 0; ++i) ::usleep(10'000);
  ::usleep(300'000);
  process.interrupt();
  const Outcome outcome = process.wait();
  EXPECT_EQ(outcome.status, 130);
  EXPECT_NE(outcome.out.find("saved; the same command goes on"), std::string::npos) << outcome.out;
  EXPECT_GT(size_or_zero(folder / "train-atp.safetensors"), 0);
  EXPECT_GT(size_or_zero(folder / "atp.safetensors"), 0);
}

// models/demo/README.md, "ATP modules".
TEST(TrainAtp, TheModulesOfTheBundledModelServeIt) {
  const fs::path source = source_folder();
  for (const auto& [modules, right] : {std::pair("atp_25", true), std::pair("atp_15", false)}) {
    const auto answer = nlohmann::json::parse(output_of(
        {"generate", "--model", (source / "models/demo").string(), "--chat",
         (source / "examples/demo/shape/messages.json").string(), "--greedy", "--max-new-tokens", "4", "--json",
         "--policy", "atp:weights=" + (source / "models/demo" / modules).string() + ".safetensors"}));
    const auto& layers = answer["stats"]["image_tokens_per_layer"];
    double first = 0, sum = 0;
    for (const auto& layer : layers)
      for (const auto& image : layer) sum += image.get<double>();
    for (const auto& image : layers[0]) first += image.get<double>();
    const double share = sum / (first * static_cast<double>(layers.size()));
    EXPECT_NEAR(share, right ? 0.25 : 0.15, 0.06) << modules;
    if (right) {
      EXPECT_EQ(answer["text"], "dir");
    }
  }
}

// The trained decoder goes to OUT/model: not where it comes from.
TEST(TrainAtp, DoesNotReplaceItsSource) {
  const TemporaryFolder folder;
  fs::create_directories(folder / "x");
  fs::copy(kModel, folder / "x/model", fs::copy_options::recursive);
  Arguments arguments = train(folder / "x", {"--train-decoder", "--steps", "1"});
  arguments[2] = (folder / "x/model").string();
  const std::string before = read_whole(folder / "x/model/model.safetensors");
  const Outcome outcome = run_espalier(arguments);
  EXPECT_EQ(outcome.status, 2);
  EXPECT_NE(outcome.err.find("would replace"), std::string::npos) << outcome.err;
  EXPECT_EQ(read_whole(folder / "x/model/model.safetensors"), before);
}

TEST(TrainAtp, SaysWhatIsWrong) {
  const TemporaryFolder folder;
  const auto expect = [](const Arguments& arguments, const std::string& part) {
    const Outcome outcome = run_espalier(arguments);
    EXPECT_EQ(outcome.status, 2);
    EXPECT_NE(outcome.err.find(part), std::string::npos) << outcome.err;
  };
  expect(train(folder / "a", {"--target-ratio", "5/4"}), "--target-ratio: expected a share above 0 and below 1");
  expect(train(folder / "a", {"--target-ratio", "few"}), "--target-ratio: expected a number or a/b");
  expect(train(folder / "a", {"--atp-weight", "-1"}), "--atp-weight: expected a number from 0");
  expect(train(folder / "a", {"--layers", "0"}), "layer");
  expect(train(folder / "a", {"--suite", "flying"}), "flying");
  expect(train(folder / "a", {"--data", (folder / "no.json").string()}), "no.json");
  std::ofstream(folder / "file") << "x";
  expect(train(folder / "file"), "file");
  output_of(train(folder / "b", {"--steps", "2"}));
  expect(train(folder / "b", {"--steps", "2", "--seed", "4"}), "was trained with seed 0, not 4");
  fs::resize_file(folder / "b" / "train-atp.safetensors", 1000);
  expect(train(folder / "b", {"--steps", "2"}), "train-atp.safetensors");
}

}  // namespace
}  // namespace espalier::test
