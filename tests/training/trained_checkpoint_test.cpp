// SPDX-License-Identifier: Apache-2.0
// What a trained checkpoint takes from the parameters, and what it copies.
#include "training/trained_checkpoint.h"

#include <gtest/gtest.h>
#include <torch/types.h>

#include <fstream>
#include <iterator>
#include <string>
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

}  // namespace
}  // namespace espalier
