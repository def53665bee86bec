// SPDX-License-Identifier: Apache-2.0
// The page of `espalier inspect`: what is in it, and that a real browser draws it.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <map>
#include <numeric>
#include <regex>

#include "tests/cli/golden_case.h"
#include "tests/cli/run_espalier.h"

namespace espalier::test {
namespace {

using nlohmann::json;

const Arguments kPolicies = {
    "--policy", "catp:keep_ratio=1/3", "--policy", "fastv:keep_ratio=1/3", "--policy", "plphp", "--policy", "none"};

std::string inspected(const TemporaryFolder& folder, const Arguments& more) {
  const GoldenCase golden("icl4");
  const std::string page = folder / "page.html";
  output_of(Arguments{"inspect", "--model", kModel.string(), "--out", page, "--max-new-tokens", "3"} +
            golden.prompt(folder) + more);
  return page;
}

json runs_of(const std::string& page) {
  const std::string text = read_whole(page), open = "<script type=\"application/json\" id=\"runs\">";
  const size_t begin = text.find(open) + open.size();
  return json::parse(text.substr(begin, text.find("</script>", begin) - begin), nullptr, false);
}

TEST(Inspect, HoldsWhatGenerateReports) {
  const TemporaryFolder folder;
  json page = runs_of(inspected(folder, kPolicies));
  ASSERT_TRUE(page.is_object());
  for (json& run : page["runs"])
    for (json& point : run["points"])
      for (const char* of_the_page : {"tokens_per_image", "merges"}) point.erase(of_the_page);
  ASSERT_EQ(page["runs"].size(), 4u);
  ASSERT_EQ(page["pictures"].size(), 5u);
  ASSERT_EQ(page["layouts"].size(), 1u);
  for (size_t i = 0; i < 4; ++i) {
    const json generated = json_of(Arguments{"generate", "--model", kModel.string(), "--greedy", "--max-new-tokens",
                                             "3", "--json", "--policy", kPolicies[2 * i + 1]} +
                                   GoldenCase("icl4").prompt(folder));
    EXPECT_EQ(page["runs"][i]["points"], generated["points"]);
    EXPECT_EQ(page["runs"][i]["kept"], generated["kept"]);
    EXPECT_EQ(page["runs"][i]["text"], generated["text"]);
  }
}

// Merged tokens are tokens: what a point is said to leave is what enters the decoder.
TEST(Inspect, CountsMergedTokens) {
  const TemporaryFolder folder;
  const json page =
      runs_of(inspected(folder, {"--policy", "m3:keep_ratio=1/4", "--policy", "prumerge", "--policy",
                                 "visionzip:num_kept=9,contextual=3", "--policy", "uniform:keep_ratio=1/4"}));
  for (const json& run : page["runs"]) {
    SCOPED_TRACE(run["policy"].get<std::string>());
    EXPECT_EQ(run["points"].back()["tokens_per_image"], run["stats"]["image_tokens_per_layer"][0]);
    EXPECT_EQ(run["points"].back()["merges"], !run["policy"].get<std::string>().starts_with("uniform"));
  }
}

// Boxes of one picture's tokens lie side by side and cover what the model sees of it.
TEST(Inspect, EveryPatchHasItsPlace) {
  const TemporaryFolder folder;
  const json page = runs_of(inspected(folder, {"--policy", "none"}));
  const json& layout = page["layouts"][0];
  const size_t n = layout["kind"].size();
  ASSERT_EQ(layout["box"].size(), n);
  ASSERT_EQ(layout["position_id"][0].size(), n);
  std::map<int, double> area;
  std::map<int, std::array<double, 4>> around;
  for (size_t t = 0; t < n; ++t) {
    const json& box = layout["box"][t];
    EXPECT_EQ(box.is_null(), layout["kind"][t] != 1);
    if (box.is_null()) continue;
    const int image = layout["image"][t];
    const double x0 = box[0], y0 = box[1], x1 = box[2], y1 = box[3];
    area[image] += (x1 - x0) * (y1 - y0);
    auto [entry, is_new] = around.try_emplace(image, std::array{x0, y0, x1, y1});
    auto& [a, b, c, d] = entry->second;
    a = std::min(a, x0), b = std::min(b, y0), c = std::max(c, x1), d = std::max(d, y1);
  }
  EXPECT_EQ(area.size(), 5u);
  for (const auto& [image, box] : around)
    EXPECT_NEAR(area[image], (box[2] - box[0]) * (box[3] - box[1]), 1e-6 * area[image]);
}

TEST(Inspect, NeedsNoNetworkAndNoOtherFile) {
  const TemporaryFolder folder;
  const std::string text = read_whole(inspected(folder, kPolicies));
  EXPECT_FALSE(std::regex_search(text, std::regex("(src|href)\\s*=\\s*[\"']?(https?:|//|[a-z]+\\.(js|css))")));
  EXPECT_EQ(text.find("@import"), std::string::npos);
  EXPECT_EQ(text.find("fetch("), std::string::npos);
}

TEST(Inspect, TextOfThePromptCannotLeaveItsPlace) {
  const TemporaryFolder folder;
  const std::string page = folder / "page.html";
  output_of({"inspect", "--model", kModel.string(), "--out", page, "--max-new-tokens", "1", "--policy", "none",
             "--prompt", "</script><script>document.title = 'taken'</script><!--"});
  const json runs = runs_of(page);
  ASSERT_TRUE(runs.is_object());
  EXPECT_NE(runs["prompt"].get<std::string>().find("</script><script>"), std::string::npos);
}

TEST(Inspect, BadPolicyLeavesNoFile) {
  const TemporaryFolder folder;
  const std::string page = folder / "page.html";
  const Outcome outcome = run_espalier({"inspect", "--model", kModel.string(), "--out", page, "--prompt", "a",
                                        "--policy", "none", "--policy", "fastv:keep_ratio=2"});
  EXPECT_EQ(outcome.status, 2);
  EXPECT_NE(outcome.err.find("keep_ratio"), std::string::npos);
  EXPECT_FALSE(std::filesystem::exists(page));
}

// The last turn of a chat, where it is the assistant's, is what would be right, and no part of the question.
TEST(Inspect, KnowsTheRightAnswer) {
  const TemporaryFolder folder;
  const json asked = {{{"role", "user"}, {"content", "what?"}}};
  json answered = asked;
  answered.push_back({{"role", "assistant"}, {"content", "that"}});
  const auto page_of = [&](const json& chat, const Arguments& more) {
    const std::string page = folder / "page.html";
    output_of(Arguments{"inspect", "--model", kModel.string(), "--out", page, "--max-new-tokens", "1", "--policy",
                        "none", "--chat", folder.write("chat.json", chat.dump())} +
              more);
    return runs_of(page);
  };
  const json plain = page_of(asked, {}), told = page_of(answered, {});
  EXPECT_FALSE(plain.contains("answer"));
  EXPECT_EQ(told["answer"], "that");
  EXPECT_EQ(told["prompt"], plain["prompt"]);
  EXPECT_EQ(page_of(answered, {"--answer", "this"})["answer"], "this");
}

// What a page becomes in a browser without a window.
std::string drawn_in_browser(const TemporaryFolder& folder, const std::string& page) {
  const std::string dom = folder / "dom.html";
  const std::string command =
      "timeout 120 chromium --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --user-data-dir='" +
      std::string(folder / "profile") + "' --virtual-time-budget=8000 --dump-dom 'file://" + page + "' > '" + dom +
      "' 2>/dev/null";
  EXPECT_EQ(std::system(command.c_str()), 0);
  return read_whole(dom);
}

bool has_browser() {
  return std::system("command -v chromium >/dev/null 2>&1") == 0;
}

// Where the preprocessor cuts a picture, the page says so; where it does not, there is nothing to say.
TEST(Inspect, ABrowserMarksWhatIsCutOff) {
  if (!has_browser()) GTEST_SKIP() << "no chromium";
  const TemporaryFolder folder;
  for (const bool is_square : {true, false}) {
    const std::string page = folder / "page.html",
                      picture = kCases / "images" / (is_square ? "56x56_shapes_33.png" : "120x50_lines_34.png");
    output_of({"inspect", "--model", kModel.string(), "--out", page, "--max-new-tokens", "1", "--policy", "none",
               "--prompt", "what?", "--image", picture});
    const std::string drawn = drawn_in_browser(folder, page);
    EXPECT_NE(drawn.find(is_square ? "<span id=\"cropped\" hidden" : "<span id=\"cropped\">"), std::string::npos);
  }
}

// Every point has its pictures, many points are folded, two kinds of counts stand apart, and no script failed.
TEST(Inspect, ABrowserDrawsIt) {
  if (!has_browser()) GTEST_SKIP() << "no chromium";
  const TemporaryFolder folder;
  const std::string page = inspected(folder, kPolicies), drawn = drawn_in_browser(folder, page);
  EXPECT_NE(drawn.find("data-ready=\"yes\""), std::string::npos);
  const json runs = runs_of(page)["runs"];
  size_t figures = 0;
  for (const json& run : runs) figures += 5 * std::max<size_t>(1, run["points"].size());
  const auto count = [&](const std::string& what) {
    size_t found = 0;
    for (size_t at = 0; (at = drawn.find(what, at)) != std::string::npos; ++at) ++found;
    return found;
  };
  EXPECT_EQ(count("<figure"), figures);
  EXPECT_EQ(count("4 more points"), 1u);  // of plphp's 8 pictures
  EXPECT_EQ(count("5 more points"), 1u);  // and of its 9 strips
  EXPECT_EQ(count("<caption>left by each point</caption>"), 4u);
  EXPECT_EQ(count("<caption>entering the decoder, where it changes</caption>"), 4u);
  EXPECT_EQ(count("class=\"without\""), 1u);  // stage 1 of catp
  EXPECT_EQ(count(" kB"), 0u);
  EXPECT_EQ(count("class=\"strip\""),
            std::accumulate(runs.begin(), runs.end(), size_t{0},
                            [](size_t sum, const json& run) { return sum + 1 + run["points"].size(); }));
}

}  // namespace
}  // namespace espalier::test
