// SPDX-License-Identifier: Apache-2.0
// What a trained checkpoint takes from the parameters, and what it copies.
#include "training/trained_checkpoint.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <torch/types.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/temporary_folder.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;

std::string bytes_of(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void write_floats(const fs::path& file, const std::string& name, const std::vector<float>& values) {
  write_safetensors(file, std::vector<TensorToWrite>{{name, Dtype::kF32, {std::ssize(values)}, values.data()}});
}

// Modules that were trained before lie beside the weights, of another size and with the names of those that are
// trained now: written from the parameters, they would take what lies behind the parameters' end in memory.
TEST(TrainedCheckpoint, ReplacesWeightsAndCopiesAllElse) {
  const TemporaryFolder folder;
  const fs::path from = folder / "from", to = folder / "to";
  fs::create_directories(from);
  write_floats(from / "model.safetensors", "language_model.model.norm.weight", {1, 2});
  write_floats(from / "atp.safetensors", "modules.0.mix.bias", std::vector<float>(5000, 7));
  folder.write("from/config.json", "{}");
  Parameters parameters;
  parameters.add("decoder.norm.weight", torch::tensor({3.F, 4.F}));
  parameters.add("modules.0.mix.bias", torch::tensor({5.F}));

  write_trained_checkpoint(from, to, parameters);

  write_floats(folder / "expected.safetensors", "language_model.model.norm.weight", {3, 4});
  EXPECT_EQ(bytes_of(to / "model.safetensors"), bytes_of(folder / "expected.safetensors"));
  EXPECT_TRUE(bytes_of(to / "atp.safetensors") == bytes_of(from / "atp.safetensors"));
  EXPECT_EQ(bytes_of(to / "config.json"), "{}");
}

// Whether under this name there is a folder without its weights, or none. A folder that was exchanged while it was
// looked at is not the one of that name.
bool lacks_weights(const fs::path& folder) {
  const int opened = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (opened < 0) return true;
  const bool has_weights = ::faccessat(opened, "model.safetensors", R_OK, 0) == 0;
  struct stat seen {
  }, named{};
  const bool is_the_same =
      ::fstat(opened, &seen) == 0 && ::stat(folder.c_str(), &named) == 0 && seen.st_ino == named.st_ino;
  ::close(opened);
  return !has_weights && is_the_same;
}

// A kill may come between any two steps: whoever looks sees what it would leave.
TEST(TrainedCheckpoint, IsThereAtAnyMomentWhenItIsWrittenAgain) {
  const TemporaryFolder folder;
  const fs::path from = folder / "from", to = folder / "to";
  fs::create_directories(from);
  write_floats(from / "model.safetensors", "language_model.model.norm.weight", {1, 2});
  for (int i = 0; i < 20; ++i) folder.write("from/" + std::to_string(i) + ".json", "{}");
  const Parameters parameters;
  write_trained_checkpoint(from, to, parameters);
  std::atomic<bool> is_done = false;
  int looks = 0, lacks = 0;
  std::thread watcher([&] {
    for (; !is_done; ++looks) lacks += lacks_weights(to);
  });
  for (int i = 0; i < 100; ++i) write_trained_checkpoint(from, to, parameters);
  is_done = true;
  watcher.join();
  EXPECT_GT(looks, 100);
  EXPECT_EQ(lacks, 0) << "of " << looks << " looks";
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), fs::directory_iterator()), 2);
}

TEST(TrainedCheckpoint, RemovesWhatKilledRunsLeft) {
  const TemporaryFolder folder;
  const fs::path from = folder / "from", to = folder / "to";
  fs::create_directories(from);
  write_floats(from / "model.safetensors", "language_model.model.norm.weight", {1, 2});
  folder.write("to.partial-1/model.safetensors", "half");
  folder.write("to.partial-2-old/config.json", "{}");
  folder.write("together/config.json", "{}");
  write_trained_checkpoint(from, to, {});
  EXPECT_FALSE(fs::exists(folder / "to.partial-1"));
  EXPECT_FALSE(fs::exists(folder / "to.partial-2-old"));
  EXPECT_TRUE(fs::exists(folder / "together/config.json"));
}

}  // namespace
}  // namespace espalier
