// SPDX-License-Identifier: Apache-2.0
#include "model/checkpoint.h"

#include <array>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "base/error_text.h"
#include "base/json_fields.h"
#include "base/json_file.h"
#include "espalier/error.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;

// On-disk prefix -> canonical prefix, "model." being stripped before. The first that fits wins.
constexpr std::array<std::pair<std::string_view, std::string_view>, 7> kPrefixes = {{
    {"language_model.model.", "decoder."},    // published LLaVA
    {"language_model.lm_head.", "lm_head."},  // published LLaVA
    {"language_model.", "decoder."},          // 4.52+
    {"vision_tower.vision_model.", "vision."},
    {"vision_tower.", "vision."},  // names in memory since 5.x
    {"visual.", "vision."},        // Qwen2.5-VL
    {"multi_modal_projector.", "projector."},
}};

// Published Qwen2.5-VL: what else follows "model." is the decoder.
constexpr std::array<std::string_view, 3> kDecoderParts = {"embed_tokens.", "layers.", "norm."};

// A shard name may lead into a sub-folder, but not out of the checkpoint. Symbolic links are followed: the hub's cache
// consists of them.
fs::path shard_path(const fs::path& folder, const std::string& shard, const std::string& index_name) {
  const fs::path relative = fs::path(shard).lexically_normal();
  if (shard.empty() || shard.find('\0') != std::string::npos || relative.is_absolute() || !relative.has_filename() ||
      *relative.begin() == "..") {
    throw Error(index_name + ": shard " + in_quotes(shard) + " is not a file inside the checkpoint folder");
  }
  return folder / relative;
}

}  // namespace

std::string canonical_name(std::string_view on_disk) {
  std::string_view name = on_disk;
  const bool in_model = name.starts_with("model.");
  if (in_model) name.remove_prefix(6);
  for (const auto& [prefix, canonical] : kPrefixes) {
    if (name.starts_with(prefix)) return std::string(canonical).append(name.substr(prefix.size()));
  }
  for (const std::string_view part : kDecoderParts) {
    if (in_model && name.starts_with(part)) return std::string("decoder.").append(name);
  }
  return std::string(name == "image_newline" ? name : on_disk);
}

Checkpoint Checkpoint::open(const fs::path& folder) {
  std::error_code ignored;
  if (!fs::is_directory(folder, ignored)) throw Error(folder.string() + ": not a checkpoint folder");
  Checkpoint out;
  out.folder_ = folder;
  const fs::path single = folder / "model.safetensors";
  const fs::path index = folder / "model.safetensors.index.json";
  if (is_there(single)) {
    out.files_.insert(single.filename().string());
    const SafetensorsFile file = SafetensorsFile::open(single);
    for (const auto& [name, view] : file.tensors()) out.add(name, view);
  } else if (is_there(index)) {
    out.add_shards(index);
  } else {
    throw Error(folder.string() + ": neither model.safetensors nor model.safetensors.index.json is there");
  }
  return out;
}

void Checkpoint::add(const std::string& on_disk, const TensorView& view) {
  const std::string name = canonical_name(on_disk);
  const auto [it, inserted] = entries_.emplace(name, Entry{on_disk, view});
  if (inserted) return;
  throw Error(folder_.string() + ": tensors " + in_quotes(it->second.on_disk) + " and " + in_quotes(on_disk) +
              " are both " + shown(name));
}

void Checkpoint::add_shards(const fs::path& index_file) {
  const std::string index_name = index_file.string();
  const nlohmann::json index = read_json_file(index_file);
  const JsonFields fields(index, index_name);
  const nlohmann::json* weight_map = fields.find("weight_map");
  if (!weight_map || !weight_map->is_object()) fields.fail("weight_map", "an object from tensor to shard");
  std::map<std::string, SafetensorsFile> shards;
  for (const auto& [name, shard] : weight_map->items()) {
    if (!shard.is_string())
      throw Error(index_name + ": weight_map " + in_quotes(name) + ": expected the name of a shard");
    const std::string& shard_name = shard.get_ref<const std::string&>();
    auto it = shards.find(shard_name);
    if (it == shards.end()) {
      const fs::path path = shard_path(folder_, shard_name, index_name);
      if (!is_there(path)) throw Error(index_name + ": shard " + in_quotes(shard_name) + " is missing");
      it = shards.emplace(shard_name, SafetensorsFile::open(path)).first;
      files_.insert(shard_name);
    }
    const auto& tensors = it->second.tensors();
    const auto tensor = tensors.find(name);
    if (tensor == tensors.end()) {
      throw Error(index_name + ": tensor " + in_quotes(name) + " is not in its shard " + shown(shard_name));
    }
    add(name, tensor->second);
  }
}

const TensorView* Checkpoint::find(std::string_view canonical_name) const {
  const auto it = entries_.find(canonical_name);
  return it == entries_.end() ? nullptr : &it->second.view;
}

std::vector<std::string> Checkpoint::names() const {
  std::vector<std::string> out;
  for (const auto& [name, entry] : entries_) out.push_back(name);
  return out;
}

}  // namespace espalier
