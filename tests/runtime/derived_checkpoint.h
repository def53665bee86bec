// SPDX-License-Identifier: Apache-2.0
// A tiny checkpoint of tests/golden in another form: other names, dtypes, shards, a changed config, something
// missing.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tests/runtime/arrays.h"
#include "tests/runtime/scratch_folder.h"
#include "tests/support/tiny_llava.h"

namespace espalier::test {

class DerivedCheckpoint {
 public:
  explicit DerivedCheckpoint(const std::string& checkpoint = "llava15") {
    for (const auto& entry : std::filesystem::directory_iterator(golden_folder() / checkpoint)) {
      const std::filesystem::path& file = entry.path();
      if (file.extension() == ".safetensors") {
        weights.merge(read_arrays(file));  // one file or shards
      } else if (entry.is_regular_file() && file.filename() != "model.safetensors.index.json") {
        std::filesystem::copy(file, path() / file.filename());
      }
    }
  }

  const std::filesystem::path& path() const { return folder_.path(); }

  void patch(const std::string& file, const nlohmann::json& merge_patch) const {
    nlohmann::json json = nlohmann::json::parse(read_file(path() / file));
    json.merge_patch(merge_patch);
    folder_.write(file, json.dump());
  }
  void remove(const std::string& file) const { std::filesystem::remove(path() / file); }

  void map(const std::function<at::Tensor(const std::string&, const at::Tensor&)>& f) {
    for (auto& [name, t] : weights) t = f(name, t);
  }
  void rename(const std::function<std::string(const std::string&)>& f) {
    Arrays renamed;
    for (const auto& [name, t] : weights) renamed[f(name)] = t;
    weights = std::move(renamed);
  }

  void write() const { write_arrays(path() / "model.safetensors", weights); }
  void write_shards(int shards) const {
    std::vector<Arrays> parts(static_cast<size_t>(shards));
    nlohmann::json index = {{"metadata", {{"total_size", 0}}}, {"weight_map", nlohmann::json::object()}};
    size_t next = 0;
    for (const auto& [name, t] : weights) {
      const size_t shard = next++ % parts.size();
      parts[shard][name] = t;
      index["weight_map"][name] = shard_name(shard, parts.size());
    }
    for (size_t i = 0; i < parts.size(); ++i) write_arrays(path() / shard_name(i, parts.size()), parts[i]);
    folder_.write("model.safetensors.index.json", index.dump());
  }

  Arrays weights;  // by the names of the golden file

 private:
  static std::string shard_name(size_t i, size_t of) {
    return "model-0000" + std::to_string(i + 1) + "-of-0000" + std::to_string(of) + ".safetensors";
  }
  ScratchFolder folder_;
};

}  // namespace espalier::test
