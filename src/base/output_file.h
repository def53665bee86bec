// SPDX-License-Identifier: Apache-2.0
// A file that appears whole or not at all: written beside its place under another name, renamed by commit().
// Without commit() (an exception on the way) the temporary is removed and an older file stays as it was.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string_view>

namespace espalier {

class OutputFile {
 public:
  explicit OutputFile(std::filesystem::path path);  // throws Error when the folder cannot be written
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  void commit();

 private:
  std::filesystem::path path_;
  std::filesystem::path temporary_;
  int descriptor_ = -1;
};

}  // namespace espalier
