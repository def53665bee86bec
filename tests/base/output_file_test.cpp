// SPDX-License-Identifier: Apache-2.0
#include "base/output_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <iterator>
#include <stdexcept>

#include "base/json_file.h"
#include "tests/support/limited_files.h"
#include "tests/support/temporary_folder.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;

void write(const fs::path& file, std::string_view text) {
  OutputFile out(file);
  out.write(text);
  out.commit();
}

size_t files_in(const fs::path& folder) {
  return static_cast<size_t>(std::distance(fs::directory_iterator(folder), fs::directory_iterator()));
}

TEST(OutputFile, AppearsWholeOrNotAtAll) {
  TemporaryFolder folder;
  const fs::path file = folder.write("x", "old");
  {
    OutputFile out(file);
    out.write("new");
    EXPECT_EQ(read_text_file(file), "old");
  }
  EXPECT_EQ(read_text_file(file), "old");
  write(file, "new");
  EXPECT_EQ(read_text_file(file), "new");
  EXPECT_EQ(files_in(folder.path()), 1u);
  EXPECT_ERROR(OutputFile(folder.path()), "cannot write: Is a directory");
  EXPECT_ERROR(OutputFile(folder / "absent" / "x"), "cannot write: No such file or directory");
}

// What a kill left is a file that nobody holds open. Another run that writes the same file keeps its own.
TEST(OutputFile, TakesOverWhatAKilledRunLeft) {
  TemporaryFolder folder;
  const fs::path file = folder / "x", left = folder.write("x.espalier-tmp-0", "a longer half");
  write(file, "new");
  EXPECT_EQ(read_text_file(file), "new");
  EXPECT_FALSE(fs::exists(left));
  {
    OutputFile first(file), second(file);
    first.write("first");
    second.write("second");
    EXPECT_EQ(files_in(folder.path()), 3u);
    first.commit();
    EXPECT_EQ(read_text_file(file), "first");
    second.commit();
  }
  EXPECT_EQ(read_text_file(file), "second");
  EXPECT_EQ(files_in(folder.path()), 1u);
}

TEST(OutputFile, LeavesAloneWhatIsNotItsOwn) {
  TemporaryFolder folder;
  const fs::path other = folder.write("other", "precious");
  fs::create_symlink("other", folder / "x.espalier-tmp-0");
  ASSERT_EQ(::mkfifo((folder / "x.espalier-tmp-1").c_str(), 0600), 0);
  fs::create_hard_link(other, folder / "x.espalier-tmp-2");
  write(folder / "x", "new");
  EXPECT_EQ(read_text_file(folder / "x"), "new");
  EXPECT_EQ(read_text_file(other), "precious");
  EXPECT_EQ(files_in(folder.path()), 5u);
}

// What the system does: the program has done nothing wrong, and neither has its user.
TEST(OutputFile, AFullDiskIsNoBadInput) {
  TemporaryFolder folder;
  const fs::path file = folder.write("x", "old");
  try {
    const LimitedFiles full(4);
    write(file, "longer than four");
    ADD_FAILURE() << "there was room";
  } catch (const Error&) {
    ADD_FAILURE() << "the caller is told that the place is bad";
  } catch (const std::runtime_error& error) {
    EXPECT_NE(std::string(error.what()).find("x: cannot write: File too large"), std::string::npos) << error.what();
  }
  EXPECT_EQ(read_text_file(file), "old");
  EXPECT_EQ(files_in(folder.path()), 1u);
}

TEST(OutputFile, ALinkStaysALink) {
  TemporaryFolder folder;
  const fs::path target = folder.write("target", "old");
  fs::create_symlink("target", folder / "link");
  fs::create_symlink("link", folder / "far");
  fs::create_symlink("absent", folder / "dangling");
  write(folder / "far", "new");
  EXPECT_TRUE(fs::is_symlink(folder / "link"));
  EXPECT_TRUE(fs::is_symlink(folder / "far"));
  EXPECT_EQ(read_text_file(target), "new");
  write(folder / "dangling", "made");
  EXPECT_TRUE(fs::is_symlink(folder / "dangling"));
  EXPECT_EQ(read_text_file(folder / "absent"), "made");
}

TEST(OutputFile, PipesAndDevicesAreWrittenTo) {
  TemporaryFolder folder;
  const fs::path pipe = folder / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_ERROR(OutputFile{pipe}, "pipe: cannot write: nobody reads this pipe");
  const int reader = ::open(pipe.c_str(), O_RDONLY | O_NONBLOCK);
  write(pipe, "through");
  char got[8] = {};
  EXPECT_EQ(::read(reader, got, 7), 7);
  ::close(reader);
  EXPECT_STREQ(got, "through");
  EXPECT_TRUE(fs::is_fifo(pipe));
  write("/dev/null", "gone");
  EXPECT_TRUE(fs::is_character_file("/dev/null"));
  EXPECT_EQ(files_in(folder.path()), 1u);
}

TEST(OutputFile, OfTwoBothAppearOrNone) {
  TemporaryFolder folder;
  const auto write_both = [&] {
    OutputFile a(folder / "a"), b(folder / "b");
    a.write("1");
    b.write("2");
    fs::create_directory(folder / "b");  // meanwhile
    commit({&a, &b});
  };
  EXPECT_ERROR(write_both(), "b: cannot write: Is a directory");
  EXPECT_FALSE(fs::exists(folder / "a"));
  EXPECT_EQ(files_in(folder.path()), 1u);
  fs::remove(folder / "b");
  OutputFile a(folder / "a"), b(folder / "b");
  commit({&a, &b});
  EXPECT_EQ(files_in(folder.path()), 2u);
}

TEST(CheckOutputs, FindsFilesThatWouldBeReplaced) {
  TemporaryFolder folder;
  const fs::path input = folder.write("input", "x");
  fs::create_symlink("input", folder / "link");
  fs::create_hard_link(input, folder / "hard");
  fs::create_directory(folder / "model");
  EXPECT_NO_THROW((check_outputs({input, "/dev/null", ""}, {folder / "out", "/dev/null", ""})));
  for (const char* name : {"input", "link", "hard", "./input", "model/../input"})
    EXPECT_ERROR((check_outputs({input}, {folder / "out", folder / name})), "would replace") << name;
  EXPECT_ERROR(check_outputs({folder / "model"}, {folder / "model/"}), "would replace");
  EXPECT_ERROR((check_outputs({}, {folder / "same", folder / "model/../same"})), "two outputs would be this one file");
}

}  // namespace
}  // namespace espalier
