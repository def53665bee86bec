// SPDX-License-Identifier: Apache-2.0
// The program `espalier`. The command line is in libespalier.so; what needs no tensor is done here without it, because
// loading libtorch costs more processor time than these commands do.
#include <dlfcn.h>

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <cstdio>
#include <exception>
#include <string_view>

#include "cli/commands.h"
#include "cli/standard_output.h"
#include "cli/version.h"
#include "program/policy_list.h"

namespace {

using namespace espalier::cli;

// False, with nothing written, when the arguments are not those of a tokenize that succeeds: the whole command line
// then says why.
bool has_tokenized(int argc, char** argv) {
  CLI::App app;
  CLI::App* tokenize = app.add_subcommand("tokenize");
  const Run run = add_tokenize(*tokenize);
  try {
    app.parse(argc, argv);
    return tokenize->parsed() && run() == kDone;
  } catch (const std::exception&) {
    return false;
  }
}

int run_library(int argc, char** argv) {
  void* library = dlopen(ESPALIER_LIBRARY, RTLD_LAZY);
  void* entry = library ? dlsym(library, "espalier_command_line") : nullptr;
  if (!entry) return std::fprintf(stderr, "espalier: %s\n", dlerror()), kFailed;
  return reinterpret_cast<int (*)(int, char**)>(entry)(argc, argv);
}

int run(int argc, char** argv) {
  const std::string_view command = argc > 1 ? argv[1] : "";
  if (command == "--version" && argc == 2) return print(version_text() + "\n"), kDone;
  if (command == "policies" && argc == 2) return print(kPolicyList), kDone;
  if (command == "tokenize" && has_tokenized(argc, argv)) return kDone;
  return run_library(argc, argv);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    return std::fprintf(stderr, "espalier: %s\n", error.what()), espalier::cli::kFailed;
  }
}
