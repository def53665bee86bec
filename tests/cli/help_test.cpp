// SPDX-License-Identifier: Apache-2.0
// How the command line explains itself: help in every width, examples, and words that are not known.
#include <gtest/gtest.h>
#include <pty.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <sstream>

#include "tests/cli/run_espalier.h"

namespace espalier::test {
namespace {

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

size_t columns(const std::string& line) {
  return static_cast<size_t>(std::ranges::count_if(line, [](char c) { return (c & 0xC0) != 0x80; }));
}

// The first words of the lines below "Subcommands:".
std::vector<std::string> commands() {
  std::vector<std::string> names;
  bool is_listed = false;
  for (const std::string& line : lines_of(output_of({"--help"}))) {
    if (line.starts_with("Subcommands:"))
      is_listed = true;
    else if (line.empty())
      is_listed = false;
    else if (is_listed && line.size() > 2 && line[2] != ' ')
      names.push_back(line.substr(2, line.find(' ', 2) - 2));
  }
  return names;
}

TEST(Help, OfEveryCommandIsNarrowAndHasAnExample) {
  const std::vector<std::string> names = commands();
  ASSERT_GE(names.size(), 15u);
  ASSERT_TRUE(std::ranges::count(names, "generate"));
  for (const std::string& name : names) {
    const std::string help = output_of({name, "--help"});
    EXPECT_EQ(help, output_of({"help", name}));
    EXPECT_NE(help.find("\n  espalier " + name), std::string::npos) << name << " shows no example";
    for (const std::string& line : lines_of(help)) EXPECT_LE(columns(line), 80u) << name << ": " << line;
  }
  EXPECT_EQ(output_of({"help"}), output_of({"--help"}));
}

// In a terminal of 50 columns; examples stay as they are.
TEST(Help, IsAsWideAsTheTerminal) {
  const winsize size{.ws_row = 24, .ws_col = 50, .ws_xpixel = 0, .ws_ypixel = 0};
  int master = -1;
  const std::string binary = espalier_binary().string();
  const pid_t child = ::forkpty(&master, nullptr, nullptr, &size);
  ASSERT_GE(child, 0);
  if (child == 0) {
    ::execl(binary.c_str(), binary.c_str(), "help", "generate", nullptr);
    ::_exit(127);
  }
  std::string text;
  char buffer[4096];
  for (ssize_t n = 0; (n = ::read(master, buffer, sizeof buffer)) > 0;) text.append(buffer, static_cast<size_t>(n));
  ::close(master);
  int status = 0;
  ::waitpid(child, &status, 0);
  ASSERT_EQ(status, 0);
  std::erase(text, '\r');
  const std::string above = text.substr(0, text.find("\n  espalier generate"));
  size_t widest = 0;
  for (const std::string& line : lines_of(above)) widest = std::max(widest, columns(line));
  EXPECT_LE(widest, 50u);
  EXPECT_GE(widest, 40u);
}

TEST(Help, SaysWhatWasLikelyMeant) {
  const std::vector<std::pair<Arguments, std::string>> cases = {
      {{"genrate"}, "there is no command \"genrate\" (did you mean generate?); see espalier --help"},
      {{"help", "genrate"}, "there is no command \"genrate\" (did you mean generate?); see espalier --help"},
      {{"qqqqqqqq"}, "there is no command \"qqqqqqqq\"; see espalier --help"},
      {{"generate", "--promt", "hi"},
       "generate: there is no option --promt (did you mean --prompt?); see espalier generate --help"},
      {{"record", "--signal", "s"},
       "record: there is no option --signal (did you mean --signals?); see espalier record"},
      {{"generate", "--prompt", "hi", "more"}, "generate: \"more\" was not expected; see espalier generate --help"},
      {{"record", "--prompt", "hi"}, "see espalier record --help"},
      {{"policies", "--models", "x"}, "(did you mean --model?)"},
      {{}, "a command is needed; see espalier --help"},
      {{"replay", "--policy", "divprun:keep_ratio=1/2", "--signals", "s", "--layout", "l", "--out", "o"},
       "policy: there is no \"divprun\" (did you mean divprune?); there are none"},
      {{"replay", "--policy", "divprune:keep_ration=1/2", "--signals", "s", "--layout", "l", "--out", "o"},
       "divprune: unknown option \"keep_ration\" (did you mean keep_ratio?)"}};
  for (const auto& [arguments, expected] : cases) {
    const Outcome outcome = run_espalier(arguments);
    EXPECT_EQ(outcome.status, 2) << outcome.out;
    EXPECT_NE(outcome.err.find(expected), std::string::npos) << outcome.err << "\nexpected: " << expected;
    EXPECT_EQ(std::ranges::count(outcome.err, '\n'), 1);
  }
}

}  // namespace
}  // namespace espalier::test
