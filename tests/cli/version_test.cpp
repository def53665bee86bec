// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <regex>

#include "tests/cli/run_espalier.h"

namespace espalier::test {
namespace {

TEST(Version, SaysWhatTheBuildIsMadeOf) {
  const std::string text = output_of({"--version"});
  EXPECT_TRUE(std::regex_match(text, std::regex("espalier \\d+\\.\\d+\\.\\d+\n"
                                                "commit   ([0-9a-f]{12}|unknown)\n"
                                                "libtorch \\d+\\.\\d+\\.\\d+\n"
                                                "CUDA     (no CUDA|\\d+\\.\\d+.*)\n"
                                                "compiler \\w+ \\d+\\.\\d+.*\n"
                                                "kernels  (plain|AVX2|AVX-512|AMX)\n")))
      << text;
}

TEST(Version, IsTheOneThatTheChangelogTellsOf) {
  const std::string changes = read_whole(source_folder() / "CHANGELOG.md");
  const size_t heading = changes.find("\n## ") + 4;
  EXPECT_EQ(output_of({"--version"}).substr(9, 5), changes.substr(heading, 5));
}

// Against what Linux says of the processor.
TEST(Version, NamesTheKernelsOfThisProcessor) {
  const std::string flags = read_whole("/proc/cpuinfo");
  const auto has = [&](const char* flag) { return flags.find(std::string(" ") + flag) != std::string::npos; };
  const std::string text = output_of({"--version"});
  const std::string level = text.substr(text.find("kernels  ") + 9);
  EXPECT_EQ(level != "plain\n", has("avx2") && has("fma") && has("f16c")) << text;
  EXPECT_EQ(level == "AVX-512\n" || level == "AMX\n", has("avx512_bf16") && has("avx512vl")) << text;
}

double children_seconds() {
  rusage usage{};
  getrusage(RUSAGE_CHILDREN, &usage);
  const auto seconds = [](const timeval& t) { return static_cast<double>(t.tv_sec) + 1e-6 * t.tv_usec; };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// Processor time, user and system: loading libtorch alone takes two to five times as much.
TEST(StartUp, OfCommandsThatNeedNoTensorIsShort) {
#ifndef NDEBUG
  GTEST_SKIP() << "times are of optimised builds";
#endif
  const TemporaryFolder folder;
  const std::string in = folder.write("in.json", R"([{"text": "What is on the sofa?"}])").string();
  const std::string out = (folder / "out.json").string();
  for (const Arguments& arguments : {Arguments{"--version"}, Arguments{"policies"},
                                     Arguments{"tokenize", "--model", kModel.string(), "--in", in, "--out", out}}) {
    const double before = children_seconds();
    output_of(arguments);
    EXPECT_LT(children_seconds() - before, 0.15) << arguments[0];
  }
  EXPECT_EQ(read_json(folder / "out.json").size(), 1);
}

// What goes wrong in them is said as by any other command.
TEST(StartUp, ErrorsOfThemAreThoseOfTheWholeCommandLine) {
  const Outcome outcome = run_espalier({"tokenize", "--model", kModel.string(), "--in", "/nowhere.json", "--out", "o"});
  EXPECT_EQ(outcome.status, 2);
  EXPECT_NE(outcome.err.find("espalier: /nowhere.json"), std::string::npos) << outcome.err;
}

}  // namespace
}  // namespace espalier::test
