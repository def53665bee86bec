// SPDX-License-Identifier: Apache-2.0
// Files that a command must not destroy, and files that come together or not at all.
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/cli/golden_case.h"
#include "tests/cli/run_espalier.h"

namespace espalier::test {
namespace {

namespace fs = std::filesystem;

Outcome run(const Arguments& arguments) {
  return EspalierProcess(arguments).wait();
}

// Exit 2, one line that holds `part`.
void expect_refused(const Arguments& arguments, const std::string& part) {
  const Outcome outcome = run(arguments);
  EXPECT_EQ(outcome.status, 2) << outcome.err;
  EXPECT_NE(outcome.err.find(part), std::string::npos) << outcome.err;
  EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
}

class OutputFiles : public testing::Test {
 protected:
  Arguments generate(const Arguments& more) const {
    return Arguments{"generate", "--model", kModel, "--dtype", "f32", "--max-new-tokens", "1"} + more;
  }
  TemporaryFolder folder_;
  const GoldenCase golden_{"icl4"};
};

TEST_F(OutputFiles, ReplayKeepsItsSignals) {
  const std::string signals = folder_ / "rec.safetensors", layout = folder_ / "layout.json";
  output_of(Arguments{"record", "--model", kModel, "--signals", signals, "--layout", layout} + golden_.prompt(folder_));
  const std::string before = read_whole(signals);
  for (const char* out : {"rec.json", "layout.json", "rec.safetensors"})
    expect_refused(
        {"replay", "--policy", "m3:num_kept=1", "--signals", signals, "--layout", layout, "--out", folder_ / out},
        "would replace");
  EXPECT_EQ(read_whole(signals), before);
}

TEST_F(OutputFiles, RecordWantsTwoFiles) {
  expect_refused(Arguments{"record", "--model", kModel, "--signals", folder_ / "same", "--layout", folder_ / "./same"} +
                     golden_.prompt(folder_),
                 "two outputs would be this one file");
  EXPECT_FALSE(fs::exists(folder_ / "same"));
}

TEST_F(OutputFiles, PromptsAndModelsAreNotReplaced) {
  const Arguments prompt = golden_.prompt(folder_);
  expect_refused(
      Arguments{"record", "--model", kModel, "--signals", prompt[1], "--layout", folder_ / "l.json"} + prompt,
      "would replace");
  fs::copy(kModel, folder_ / "model");
  expect_refused(
      Arguments{"inspect", "--model", folder_ / "model", "--policy", "none", "--out", folder_ / "model/config.json"} +
          prompt,
      "would replace");
  expect_refused({"tokenize", "--model", kModel, "--in", prompt[1], "--out", prompt[1]}, "would replace");
}

TEST_F(OutputFiles, ADumpIsTwoFilesOrNone) {
  fs::create_directory(folder_ / "d.json");
  expect_refused(generate({"--dump", folder_ / "d"}) + golden_.prompt(folder_), "d.json: cannot write");
  EXPECT_FALSE(fs::exists(folder_ / "d.safetensors"));
}

TEST_F(OutputFiles, LinksStayLinksAndPipesStayPipes) {
  const std::string in = folder_.write("in.json", "[]");
  folder_.write("target", "old");
  fs::create_symlink("target", folder_ / "link");
  output_of({"tokenize", "--model", kModel, "--in", in, "--out", folder_ / "link"});
  EXPECT_TRUE(fs::is_symlink(folder_ / "link"));
  EXPECT_EQ(read_whole(folder_ / "target"), "[]\n");
  ASSERT_EQ(::mkfifo((folder_ / "pipe").c_str(), 0600), 0);
  expect_refused({"tokenize", "--model", kModel, "--in", in, "--out", folder_ / "pipe"}, "nobody reads this pipe");
  EXPECT_TRUE(fs::is_fifo(folder_ / "pipe"));
  EXPECT_EQ(output_of({"tokenize", "--model", kModel, "--in", in, "--out", "/dev/stdout"}), "[]\n");
}

TEST_F(OutputFiles, NamesAndValuesAreShownInOneLine) {
  expect_refused(generate({"--image", folder_ / "no\nsuch.png", "--prompt", "x"}), "no\\nsuch.png: no such file");
  expect_refused(generate({"--prompt", "x", "--policy", "\x1b[31mred"}), "there is no \"\\x1B[31mred\"");
  const Outcome long_one = run(generate({"--prompt", "x", "--policy", std::string(100000, 'x')}));
  EXPECT_EQ(long_one.status, 2);
  EXPECT_LT(long_one.err.size(), 2000u);
  expect_refused(generate({"--image", std::string(5000, 'x'), "--prompt", "x"}), "File name too long");
  expect_refused(generate({"--image", "/proc/self/mem", "--prompt", "x"}), "/proc/self/mem: cannot read");
  expect_refused({"generate", "--model", std::string(5000, 'x'), "--prompt", "x"}, "no such model folder");
}

TEST_F(OutputFiles, ATemplateForTextIsTaken) {
  const std::string file = folder_.write("t.jinja", "{% for m in messages %}{{ m.content }}{% endfor %}");
  const auto json = json_of(generate({"--chat-template", file, "--json"}) + golden_.prompt(folder_));
  EXPECT_TRUE(json["prompt"].get<std::string>().starts_with("<image>\n"));
  expect_refused(generate({"--chat-template", folder_ / "absent", "--prompt", "x"}), "absent: no such file");
}

}  // namespace
}  // namespace espalier::test
