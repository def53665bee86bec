// SPDX-License-Identifier: Apache-2.0
// One case of tests/golden/llava15/cases as command-line options, and comparison with its tensors under the limits of
// tests/golden (float32: 3e-4 of the rms at most, 1e-4 in the mean square).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "base/safetensors.h"
#include "tests/cli/run_espalier.h"

namespace espalier::test {

class GoldenCase {
 public:
  explicit GoldenCase(std::string case_name)
      : name(std::move(case_name)),
        json(read_json(kCases / (name + ".json"))),
        tensors_file(kCases / (name + ".safetensors")) {}

  // --chat with the conversation of the case, written into `folder`, or --raw-prompt where there is none.
  Arguments prompt(const TemporaryFolder& folder) const {
    Arguments images;
    size_t next_image = 0;
    for (const auto& file : json["image_files"]) images.insert(images.end(), {"--image", (kCases / file).string()});
    if (json["messages"].is_null()) return images + Arguments{"--raw-prompt", json["prompt"].get<std::string>()};
    nlohmann::json messages = json["messages"];
    for (auto& message : messages)
      for (auto& part : message["content"])
        if (part["type"] == "image") part["path"] = (kCases / json["image_files"][next_image++]).string();
    return {"--chat", folder.write(name + ".messages.json", messages.dump()).string()};
  }

  // The pixels of the reference, so that only the model is compared.
  Arguments pixels() const {
    if (json["image_files"].empty()) return {};
    return {"--pixel-values", tensors_file.string()};
  }

  std::string name;
  nlohmann::json json;
  std::filesystem::path tensors_file;
};

inline std::vector<double> numbers(const TensorView& view) {
  const auto read = [&]<class T>(T) {
    std::vector<T> raw(view.bytes.size() / sizeof(T));
    std::memcpy(raw.data(), view.bytes.data(), view.bytes.size());
    return std::vector<double>(raw.begin(), raw.end());
  };
  EXPECT_TRUE(view.dtype == Dtype::kF32 || view.dtype == Dtype::kI64);
  return view.dtype == Dtype::kI64 ? read(int64_t{}) : read(float{});
}

inline void expect_near_golden(const std::vector<double>& mine, const std::vector<double>& golden,
                               const std::string& name) {
  ASSERT_EQ(mine.size(), golden.size()) << name;
  double square = 0, error = 0, largest = 0;
  for (size_t i = 0; i < mine.size(); ++i) {
    ASSERT_TRUE(std::isfinite(mine[i])) << name << '[' << i << ']';
    square += golden[i] * golden[i];
    error += (mine[i] - golden[i]) * (mine[i] - golden[i]);
    largest = std::max(largest, std::abs(mine[i] - golden[i]));
  }
  const double rms = std::sqrt(square / double(mine.size()));
  EXPECT_LE(largest, 3e-4 * rms) << name;
  EXPECT_LE(std::sqrt(error / double(mine.size())), 1e-4 * rms) << name;
}

}  // namespace espalier::test
