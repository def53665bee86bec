// SPDX-License-Identifier: Apache-2.0
#include "tests/fuzz/scratch.h"

#include <stdlib.h>

#include <cstdlib>
#include <fstream>
#include <stdexcept>

namespace espalier::fuzz {

namespace {

struct Folder {
  std::filesystem::path path;
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "espalier-fuzz-XXXXXX").string();
    if (!::mkdtemp(name.data())) throw std::runtime_error("cannot make " + name);
    path = name;
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
};

}  // namespace

const std::filesystem::path& scratch_folder() {
  static const Folder folder;
  return folder.path;
}

std::filesystem::path write_scratch(std::string_view name, std::string_view bytes) {
  const std::filesystem::path file = scratch_folder() / name;
  std::ofstream stream(file, std::ios::binary | std::ios::trunc);
  stream.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  stream.close();
  if (!stream) throw std::runtime_error("cannot write " + file.string());
  return file;
}

void remove_scratch(std::string_view name) {
  std::filesystem::remove(scratch_folder() / name);
}

std::filesystem::path source_folder() {
  return ESPALIER_SOURCE_DIR;
}

std::vector<std::string_view> split(std::string_view input, size_t most) {
  std::vector<std::string_view> parts;
  while (parts.size() + 1 < most) {
    const size_t end = input.find('\0');
    if (end == std::string_view::npos) break;
    parts.push_back(input.substr(0, end));
    input.remove_prefix(end + 1);
  }
  parts.push_back(input);
  return parts;
}

void expect(bool holds, const char* promise) {
  if (!holds) throw std::logic_error(promise);
}

}  // namespace espalier::fuzz
