// SPDX-License-Identifier: Apache-2.0
// libFuzzer over one target: `fuzzer --target=NAME`, and libFuzzer's own options and folders behind it. One program for
// all targets, because linking the runtime takes longer than compiling a target.
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "tests/fuzz/targets.h"

namespace {

void (*target)(std::string_view) = nullptr;

}  // namespace

// libFuzzer passes over options that begin with two dashes.
extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  constexpr std::string_view kOption = "--target=";
  for (int i = 1; i < *argc; ++i)
    if (const std::string_view argument = (*argv)[i]; argument.starts_with(kOption))
      if (const auto* found = espalier::fuzz::find_target(argument.substr(kOption.size()))) target = found->run;
  if (target) return 0;
  std::fputs("usage: fuzzer --target=NAME [libFuzzer's options and folders]; NAME is one of\n", stderr);
  for (const auto& known : espalier::fuzz::targets())
    std::fprintf(stderr, "  %.*s\n", static_cast<int>(known.name.size()), known.name.data());
  std::exit(2);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  target({reinterpret_cast<const char*>(bytes), size});
  return 0;
}
