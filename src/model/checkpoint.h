// SPDX-License-Identifier: Apache-2.0
// The weights of a checkpoint folder under one set of names, whichever of the on-disk layouts they have (one file or
// shards; published, 4.52+ or 5.x names). Which weights a model needs, and their shapes, is not known here.
#pragma once

#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/safetensors.h"

namespace espalier {

// "language_model.model.layers.0.mlp.up_proj.weight" -> "decoder.layers.0.mlp.up_proj.weight". The names are
//   decoder.embed_tokens.weight, decoder.layers.N.…, decoder.norm.weight, lm_head.weight,
//   vision.…, projector.linear_1.weight …, image_newline.
// A name of no known layout comes back as it is.
std::string canonical_name(std::string_view on_disk);

class Checkpoint {
 public:
  // model.safetensors, or the shards of model.safetensors.index.json. Throws Error for a missing or broken file, a
  // tensor that is not in its shard, a shard outside the folder, and two tensors with one canonical name.
  static Checkpoint open(const std::filesystem::path& folder);

  const std::filesystem::path& folder() const { return folder_; }
  const TensorView* find(std::string_view canonical_name) const;  // nullptr when there is none
  std::vector<std::string> names() const;                         // canonical, sorted
  // Names of the files that hold them, in the folder. Other safetensors files may lie beside them (modules of
  // policies).
  const std::set<std::string>& files() const { return files_; }

 private:
  struct Entry {
    std::string on_disk;
    TensorView view;
  };
  void add(const std::string& on_disk, const TensorView& view);
  void add_shards(const std::filesystem::path& index_file);

  std::filesystem::path folder_;
  std::set<std::string> files_;
  std::map<std::string, Entry, std::less<>> entries_;
};

}  // namespace espalier
