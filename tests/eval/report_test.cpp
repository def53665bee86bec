// SPDX-License-Identifier: Apache-2.0
#include "eval/report.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <regex>
#include <set>
#include <string>

#include "report/plot.h"

namespace espalier::eval {
namespace {

using nlohmann::json;

CellResult cell(const char* policy, const char* suite, const char* name, int64_t correct, int64_t n, double tokens) {
  CellResult c;
  c.policy = policy;
  c.suite = suite;
  c.cell = name;
  c.chance = 0.5;
  c.n = n;
  c.correct = correct;
  c.interval = wilson_interval(correct, n);
  c.chosen_correctly = correct;
  c.tokens_mean = tokens;
  c.flops = 1e6 * tokens;
  c.flops_unpruned = 64e6;
  return c;
}

EvalResult small_result() {
  EvalResult result;
  result.cells = {cell("none", "bind", "shape-2x1", 96, 100, 64),
                  cell("fastv:keep_ratio=1/2", "bind", "shape-2x1", 60, 100, 32)};
  result.cells[1].difference = Difference{-0.36, {-0.46, -0.26}};
  result.cells[1].mcnemar = 1e-6;
  CellResult control = cell("none", "bind", "shape-2x1", 48, 100, 64);
  control.control = synth::Control::kShuffledWords;
  control.chosen_correctly.reset();
  result.cells.push_back(control);
  result.digests = {{"bind/shape-2x1", "abc"}};
  return result;
}

const EvalContext kContext{.difficulty = "hard", .seed = 3, .items = 100, .command = "espalier eval"};

TEST(Report, JsonHasWhatProgramsRead) {
  const json report = json::parse(to_json(small_result(), kContext, {{"schema", 1}, {"model", "demo"}}));
  ASSERT_EQ(report["cells"].size(), 3u);
  for (const json& c : report["cells"])
    for (const char* field :
         {"policy", "suite", "cell", "control", "chance", "n", "correct", "low", "high", "tokens_mean", "flops"})
      EXPECT_TRUE(c.contains(field)) << field;
  EXPECT_EQ(report["cells"][0]["control"], false);
  EXPECT_EQ(report["cells"][1]["correct"], 60);
  EXPECT_EQ(report["cells"][1]["difference"]["mean"], -0.36);
  EXPECT_EQ(report["cells"][2]["control"], true);
  EXPECT_EQ(report["cells"][2]["control_name"], "shuffled-words");
  EXPECT_TRUE(report["cells"][2]["chosen_correctly"].is_null());
  EXPECT_EQ(report["items_sha256"]["bind/shape-2x1"], "abc");
  EXPECT_EQ(report["seed"], 3);
  EXPECT_EQ(report["schema"], 1);
  EXPECT_EQ(report["model"], "demo");
  EXPECT_EQ(report["complete"], true);
}

// The best that is left without what a control takes away, where that is not the cell's chance.
TEST(Report, AControlSaysItsOwnChance) {
  EvalResult result = small_result();
  EXPECT_EQ(to_markdown(result, kContext).find("(chance"), std::string::npos);
  CellResult other = result.cells.back();
  other.control = synth::Control::kNoExamples;
  other.chance = 1.0 / 3;
  result.cells.push_back(other);
  EXPECT_NE(to_markdown(result, kContext).find("(chance 33.3)"), std::string::npos);
}

// A table that was cut short says so.
TEST(Report, SaysThatItWasInterrupted) {
  EvalResult result = small_result();
  EXPECT_EQ(to_markdown(result, kContext).find("Interrupted"), std::string::npos);
  result.is_complete = false;
  EXPECT_NE(to_markdown(result, kContext).find("Interrupted"), std::string::npos);
  EXPECT_EQ(json::parse(to_json(result, kContext, {}))["complete"], false);
}

TEST(Report, MarkdownSaysAccuracyIntervalAndDifference) {
  const std::string text = to_markdown(small_result(), kContext);
  EXPECT_NE(text.find("| `none`"), std::string::npos);
  EXPECT_NE(text.find("96.0 ±4.1"), std::string::npos) << text;   // Wilson: .902 to .984
  EXPECT_NE(text.find("60.0 ±9.4*"), std::string::npos) << text;  // Wilson: .502 to .691; differs
  EXPECT_NE(text.find("62.5 %"), std::string::npos) << text;      // 60 of 96
  EXPECT_NE(text.find("50.0 %"), std::string::npos) << text;      // FLOPs
  EXPECT_NE(text.find("shuffled-words"), std::string::npos);
}

TEST(Report, PlotIsWellFormed) {
  const std::string svg = to_svg(small_result());
  EXPECT_TRUE(svg.starts_with("<svg "));
  EXPECT_TRUE(svg.ends_with("</svg>\n"));
  EXPECT_NE(svg.find("bind/shape-2x1"), std::string::npos);
  EXPECT_NE(svg.find(">fastv:keep_ratio=1/2<"), std::string::npos);
  EXPECT_NE(svg.find(">accuracy, %<"), std::string::npos);
  EXPECT_EQ(svg.find("nan"), std::string::npos);
}

// Names in the legend: options, of files the last folder, of policies in sequence each one; the amount where it is the
// same all along the line.
TEST(Report, PlotNamesItsLines) {
  EvalResult result = small_result();
  for (const char* policy : {"divprune:keep_ratio=1/2 + fastv:keep_ratio=1/3,layer=3",
                             "atp:weights=build/some/where/atp.safetensors", "sparsevlm:theta=1/2:1/3,keep_ratio=1/2"})
    result.cells.push_back(cell(policy, "bind", "shape-2x1", 60, 100, 32));
  const std::string svg = to_svg(result);
  for (const char* name : {"divprune:keep_ratio=1/2 + fastv:keep_ratio=1/3,layer=3",
                           "atp:weights=where/atp.safetensors", "sparsevlm:theta=1/2:1/3,keep_ratio=1/2"})
    EXPECT_NE(svg.find(std::string(">") + name + "<"), std::string::npos) << name;
  result.cells.push_back(cell("fastv:keep_ratio=1/4", "bind", "shape-2x1", 50, 100, 16));
  EXPECT_NE(to_svg(result).find(">fastv<"), std::string::npos);
}

// A legend too long for one row goes on in the next, inside the picture. More lines than a panel can show go on in the
// next one, so that no two lines of a panel look alike.
TEST(Report, PlotOfManyPolicies) {
  EvalResult result = small_result();
  constexpr size_t kPolicies = 30;
  for (size_t i = 0; i < kPolicies; ++i) {
    const std::string name = "some_policy:with_an_option=" + std::to_string(i);
    result.cells.push_back(cell(name.c_str(), "bind", "shape-2x1", 60 + static_cast<int64_t>(i), 100, 32));
  }
  const std::string svg = to_svg(result);
  const std::regex box("viewBox=\"0 0 ([0-9]+) ([0-9]+)\""),
      entry(
          "<(circle|rect)([^>]*)style=\"fill:([^\"]+)\"/>\n<text x=\"([0-9.]+)\" y=\"([0-9.]+)\" "
          "class=\"name\">([^<]+)<");
  std::smatch size;
  ASSERT_TRUE(std::regex_search(svg, size, box));
  std::set<std::string> looks;  // of the panel
  size_t entries = 0;
  for (std::sregex_iterator it(svg.begin(), svg.end(), entry), end; it != end; ++it, ++entries) {
    const bool is_turned = (*it)[2].str().find("transform") != std::string::npos;
    if (entries % kLinesPerBlock == 0) looks.clear();
    looks.insert((*it)[1].str() + (is_turned ? " turned " : " ") + (*it)[3].str());
    EXPECT_LE(std::stod((*it)[4]) + 6.0 * static_cast<double>((*it)[6].length()), std::stod(size[1]));
    EXPECT_LE(std::stod((*it)[5]), std::stod(size[2]));
    EXPECT_EQ(looks.size(), entries % kLinesPerBlock + 1);
  }
  EXPECT_EQ(entries, kPolicies + 1);  // and fastv
  size_t panels = 0;
  for (size_t at = 0; (at = svg.find(">bind/shape-2x1<", at)) != std::string::npos; ++at) ++panels;
  EXPECT_EQ(panels, 6u);
}

// The curve of late reading is drawn over the layer; beside other policies, over tokens like these.
TEST(Report, PlotOfACurve) {
  EvalResult result = small_result();
  EXPECT_NE(to_svg(result).find("image tokens per layer"), std::string::npos);
  result.cells[1].policy = "vtw:layer=3";
  EXPECT_NE(to_svg(result).find("images are gone before layer"), std::string::npos);
  result.cells.push_back(cell("fastv:keep_ratio=1/2", "bind", "shape-2x1", 60, 100, 32));
  EXPECT_NE(to_svg(result).find("image tokens per layer"), std::string::npos);
}

TEST(Plot, TicksAreRound) {
  using Ticks = std::vector<double>;
  EXPECT_EQ(round_ticks(100), (Ticks{0, 20, 40, 60, 80, 100}));
  EXPECT_EQ(round_ticks(19923), (Ticks{0, 5000, 10000, 15000}));
  EXPECT_EQ(round_ticks(64), (Ticks{0, 20, 40, 60}));
  EXPECT_EQ(round_ticks(8), (Ticks{0, 2, 4, 6, 8}));
  EXPECT_EQ(round_ticks(0.5), (Ticks{0, 0.1, 0.2, 3 * 0.1, 0.4, 0.5}));
}

}  // namespace
}  // namespace espalier::eval
