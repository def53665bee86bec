// SPDX-License-Identifier: Apache-2.0
// A file that grows by whole lines: whoever reads it, or goes on with it after a kill or on a disk that was full, finds
// whole lines only. One process writes it at a time.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace espalier {

class LineFile {
 public:
  // Opens what is there, or makes it. A last line without its end was cut short and is dropped. Throws Error when it
  // cannot be written or another process writes it.
  explicit LineFile(std::filesystem::path file);
  ~LineFile();
  LineFile(const LineFile&) = delete;
  LineFile& operator=(const LineFile&) = delete;

  const std::filesystem::path& path() const { return file_; }
  std::string read() const;  // all that it holds
  // With its end, behind all that is there. Throws as OutputFile does, and the file is then as it was before.
  void add(std::string_view line);
  void finish();  // all lines are on the disk

 private:
  std::filesystem::path file_;
  int descriptor_ = -1;
};

}  // namespace espalier
