// SPDX-License-Identifier: Apache-2.0
#include "base/line_file.h"

#include <gtest/gtest.h>

#include <stdexcept>
#include <string>

#include "base/json_file.h"
#include "tests/support/limited_files.h"
#include "tests/support/temporary_folder.h"

namespace espalier {
namespace {

TEST(LineFile, GoesOnBehindTheLastWholeLine) {
  const TemporaryFolder folder;
  { LineFile(folder / "log").add("one\n"); }
  for (const char* cut : {"", "t", "two"}) {
    const auto file = folder.write("log", std::string("one\n") + cut);
    LineFile lines(file);
    EXPECT_EQ(lines.read(), "one\n") << cut;
    lines.add("three\n");
    EXPECT_EQ(read_text_file(file), "one\nthree\n") << cut;
  }
}

TEST(LineFile, AFullDiskLeavesWholeLines) {
  const TemporaryFolder folder;
  LineFile lines(folder / "log");
  lines.add("one\n");
  {
    const LimitedFiles full(10);
    try {
      lines.add("a longer line\n");
      ADD_FAILURE() << "there was room";
    } catch (const Error&) {
      ADD_FAILURE() << "the caller is told that the place is bad";
    } catch (const std::runtime_error& error) {
      EXPECT_NE(std::string(error.what()).find("log: cannot write: File too large"), std::string::npos);
    }
    EXPECT_EQ(lines.read(), "one\n");
    lines.add("two\n");
  }
  EXPECT_EQ(lines.read(), "one\ntwo\n");
}

TEST(LineFile, HasOneWriter) {
  const TemporaryFolder folder;
  const LineFile mine(folder / "log");
  EXPECT_ERROR(LineFile(folder / "log"), "another process writes it");
  EXPECT_ERROR(LineFile(folder / "nowhere/log"), "cannot write: No such file or directory");
}

}  // namespace
}  // namespace espalier
