// SPDX-License-Identifier: Apache-2.0
// Feeds files to the fuzz targets, without libFuzzer and with any compiler: `fuzz_corpus SEEDS` takes SEEDS/TARGET/* of
// every target, `fuzz_corpus TARGET FILE…` runs what a fuzzer found again. Names each input before it is run, so that
// the last line tells which one crashed.
#include <algorithm>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "tests/fuzz/targets.h"

namespace {

using espalier::fuzz::Target;
namespace fs = std::filesystem;

bool run(const Target& target, const fs::path& file) {
  std::printf("%s %s\n", target.name.data(), file.c_str());
  std::fflush(stdout);
  std::ifstream stream(file, std::ios::binary);
  const std::string input{std::istreambuf_iterator<char>(stream), {}};
  if (!stream) return std::printf("  cannot be read\n"), false;
  try {
    target.run(input);
    return true;
  } catch (const std::exception& error) {
    std::printf("  not the answer that a user gets: %s\n", error.what());
    return false;
  }
}

std::vector<fs::path> files_of(const fs::path& folder) {
  std::vector<fs::path> files(fs::directory_iterator(folder), fs::directory_iterator{});
  std::ranges::sort(files);
  return files;
}

}  // namespace

int main(int argc, char** argv) {
  bool all_well = argc > 1;
  const Target* one = argc > 2 ? espalier::fuzz::find_target(argv[1]) : nullptr;
  if (argc < 2 || (argc > 2 && !one)) {
    std::fputs("usage: fuzz_corpus SEEDS | fuzz_corpus TARGET FILE...\n", stderr);
    return 2;
  }
  for (int i = 2; i < argc; ++i) all_well &= run(*one, argv[i]);
  if (one) return all_well ? 0 : 1;
  for (const Target& target : espalier::fuzz::targets()) {
    const fs::path folder = fs::path(argv[1]) / target.name;
    if (!fs::is_directory(folder)) {
      std::printf("%s: no such folder\n", folder.c_str());
      all_well = false;
      continue;
    }
    for (const fs::path& file : files_of(folder)) all_well &= run(target, file);
  }
  return all_well ? 0 : 1;
}
