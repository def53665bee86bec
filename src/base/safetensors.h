// SPDX-License-Identifier: Apache-2.0
// The safetensors format: named tensors in one file, read through a memory map and written whole. Checks every number
// of the header before using it; knows nothing of what a tensor means.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace espalier {

enum class Dtype : uint8_t { kF32, kF16, kBF16, kF64, kI64, kI32, kI16, kI8, kU8, kBool };

int64_t size_of(Dtype dtype);           // bytes of one element
std::string_view name_of(Dtype dtype);  // as the format spells it: "F32", "BF16", "BOOL", …

// One tensor inside a mapped file, little-endian and contiguous. Copies share the map. The format does not promise that
// `bytes` is aligned to the element size; files written here are.
struct TensorView {
  Dtype dtype;
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;
  std::shared_ptr<const void> owner;  // keeps the map alive
};

class SafetensorsFile {
 public:
  // Throws Error naming file and tensor for anything that the format does not allow. The file must not shrink while a
  // view of it lives: reading past the new end is SIGBUS, as with any memory map.
  static SafetensorsFile open(const std::filesystem::path& file);

  const std::map<std::string, TensorView>& tensors() const { return tensors_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  std::map<std::string, TensorView> tensors_;
  std::map<std::string, std::string> metadata_;
};

struct TensorToWrite {
  std::string name;
  Dtype dtype;
  std::vector<int64_t> shape;
  const void* data;  // contiguous; may be null for a tensor without elements
};

class OutputFile;

// Replaces `file` only when all is written. Tensors are stored widest element first, so that each is aligned.
void write_safetensors(const std::filesystem::path& file, std::span<const TensorToWrite> tensors,
                       const std::map<std::string, std::string>& metadata = {});
// The same without its commit().
void write_safetensors(OutputFile& file, std::span<const TensorToWrite> tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace espalier
