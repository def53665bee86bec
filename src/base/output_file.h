// SPDX-License-Identifier: Apache-2.0
// A file that appears whole or not at all: written beside its place under another name, renamed by commit().
// Without commit() (an exception on the way) the temporary is removed and an older file stays as it was; the temporary
// of a process that was killed is taken over by the next one that writes this file. A link stays a link: what it leads
// to is replaced. Pipes and character devices are written to as they are, nothing stands in for them; a folder, a
// socket, a disk is an Error.
#pragma once

#include <cstddef>
#include <filesystem>
#include <initializer_list>
#include <span>
#include <string_view>
#include <vector>

namespace espalier {

class OutputFile {
 public:
  explicit OutputFile(std::filesystem::path path);  // throws as fail_to_write, as all of these
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  void commit();
  const std::filesystem::path& path() const { return path_; }

 private:
  friend void commit(std::initializer_list<OutputFile*> files);
  void finish();  // all bytes are on their way to the disk
  void appear();
  void close();

  std::filesystem::path path_;       // as the caller named it, for messages
  std::filesystem::path target_;     // where that leads to
  std::filesystem::path temporary_;  // empty: written to the target itself
  int descriptor_ = -1;
};

// "FILE: cannot write: " and the system's words for `error` (an errno): an Error where the caller named a place that
// cannot be written, a std::runtime_error where the disk is full or broken.
[[noreturn]] void fail_to_write(const std::filesystem::path& file, int error);

// All of them appear or none: none does before each has been written to its end.
void commit(std::initializer_list<OutputFile*> files);

// Throws Error when two of `outputs` are one file, or one of them is among `inputs`, however they are named. To be
// asked before any work. Empty paths are none.
void check_outputs(const std::vector<std::filesystem::path>& inputs, const std::vector<std::filesystem::path>& outputs);

}  // namespace espalier
