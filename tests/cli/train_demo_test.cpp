// SPDX-License-Identifier: Apache-2.0
// `espalier train-demo` in real processes: killed at any moment it goes on to the same bits; Ctrl-C saves; what is
// wrong is said in one line.
#include <gtest/gtest.h>
#include <unistd.h>

#include "tests/cli/run_espalier.h"

namespace espalier::test {
namespace {

namespace fs = std::filesystem;

Arguments train(const fs::path& out, const Arguments& more = {}) {
  return Arguments{"train-demo", "--stage", "copying", "--seed", "3", "--dtype", "bf16", "--out", out.string()} + more;
}

int64_t size_or_zero(const fs::path& file) {
  std::error_code code;
  const auto size = fs::file_size(file, code);
  return code ? 0 : static_cast<int64_t>(size);
}

TEST(TrainDemo, KilledAtAnyMomentItGoesOnToTheSameBits) {
  const TemporaryFolder folder;
  const Arguments pace = {"--max-steps", "16", "--save-every", "3"};
  output_of(train(folder / "whole", pace));
  const fs::path killed = folder / "killed", state = killed / "copying.safetensors";
  for (const int wait_ms : {0, 130, 410}) {  // from when there is a state: within a step, or while one is written
    const EspalierProcess process(train(killed, pace));
    for (int i = 0; i < 6000 && size_or_zero(state) == 0; ++i) ::usleep(10'000);
    ::usleep(static_cast<useconds_t>(wait_ms) * 1000);
  }  // SIGKILL
  output_of(train(killed, pace));
  EXPECT_EQ(read_whole(state), read_whole(folder / "whole" / "copying.safetensors"));
}

TEST(TrainDemo, CtrlCSavesAndSaysSo) {
  const TemporaryFolder folder;
  const fs::path log = folder / "copying.log.jsonl";
  EspalierProcess process(train(folder / "."));
  for (int i = 0; i < 6000 && size_or_zero(log) == 0; ++i) ::usleep(10'000);
  ::usleep(300'000);
  process.interrupt();
  const Outcome outcome = process.wait();
  EXPECT_EQ(outcome.status, 130);
  EXPECT_NE(outcome.out.find("saved"), std::string::npos) << outcome.out;
  EXPECT_GT(size_or_zero(folder / "copying.safetensors"), 0);
}

// The other recipe: a stage of it pauses and goes on to the same bits, and writes the files of the larger model.
TEST(TrainDemo, HasARecipeForCrowds) {
  const TemporaryFolder folder;
  const auto few = [&](const char* name, const char* steps) {
    return Arguments{"train-demo", "--recipe", "crowded",     "--stage",     "labels-few", "--seed",
                     "2",          "--out",    folder / name, "--max-steps", steps};
  };
  output_of(few("whole", "4"));
  output_of(few("parts", "1"));
  output_of(few("parts", "4"));
  EXPECT_EQ(read_whole(folder.path() / "parts" / "labels-few.safetensors"),
            read_whole(folder.path() / "whole" / "labels-few.safetensors"));
  EXPECT_EQ(read_json(folder.path() / "whole" / "model" / "config.json")["image_seq_length"], 144);
  const Outcome other =
      run_espalier({"train-demo", "--recipe", "crowded", "--stage", "copying", "--out", folder / "x"});
  EXPECT_EQ(other.status, 2);
  EXPECT_NE(other.err.find("there is no stage copying"), std::string::npos) << other.err;
  const Outcome early =
      run_espalier({"train-demo", "--recipe", "crowded", "--stage", "some-tokens", "--out", folder / "y"});
  EXPECT_EQ(early.status, 2);
  EXPECT_NE(early.err.find("builds on labels-sequences, which is not finished"), std::string::npos) << early.err;
}

TEST(TrainDemo, SaysWhatIsWrong) {
  const TemporaryFolder folder;
  const auto expect = [](const Arguments& arguments, const std::string& part) {
    const Outcome outcome = run_espalier(arguments);
    EXPECT_EQ(outcome.status, 2);
    EXPECT_NE(outcome.err.find(part), std::string::npos) << outcome.err;
  };
  expect({"train-demo", "--out", (folder / "a").string(), "--stage", "flying"}, "there is no stage flying");
  expect({"train-demo", "--out", (folder / "a").string(), "--stage", "text-binding"},
         "builds on short-turns, which is not finished");
  std::ofstream(folder / "file") << "x";
  expect({"train-demo", "--out", (folder / "file").string(), "--stage", "copying"}, "file");
  output_of(train(folder / "b", {"--max-steps", "1"}));
  expect({"train-demo", "--stage", "copying", "--seed", "4", "--out", (folder / "b").string()},
         "was trained with seed 3, not 4");
  fs::resize_file(folder / "b" / "copying.safetensors", 1000);
  expect(train(folder / "b", {"--max-steps", "2"}), "copying.safetensors");
}

}  // namespace
}  // namespace espalier::test
