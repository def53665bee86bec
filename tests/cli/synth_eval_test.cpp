// SPDX-License-Identifier: Apache-2.0
// `espalier synth` and `espalier eval` as a user runs them, on a checkpoint with random weights: what is checked is the
// machinery, against `generate` on the items that `synth` wrote.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "espalier/image.h"
#include "tests/cli/golden_case.h"
#include "tests/cli/run_espalier.h"

namespace espalier::test {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

std::vector<json> index_of(const fs::path& folder) {
  std::vector<json> lines;
  std::ifstream in(folder / "index.jsonl");
  for (std::string line; std::getline(in, line);) lines.push_back(json::parse(line, nullptr, false));
  return lines;
}

// The first token of each choice behind the prompt, told by comparing the ids of both texts.
std::vector<size_t> first_ids(const TemporaryFolder& folder, const json& prompt, const json& choices) {
  json cases = json::array({{{"text", prompt}}});
  for (const json& choice : choices)
    cases.push_back({{"text", prompt.get<std::string>() + " " + choice.get<std::string>()}});
  output_of({"tokenize", "--model", kModel.string(), "--in", folder.write("cases.json", cases.dump()).string(), "--out",
             folder / "ids.json"});
  const json made = read_json(folder / "ids.json");
  std::vector<size_t> ids;
  for (size_t i = 1; i < made.size(); ++i) ids.push_back(made[i]["ids"][made[0]["ids"].size()]);
  return ids;
}

const Arguments kSmallEval = {"eval",    "--model", kModel.string(), "--dtype", "f32",   "--side", "56",
                              "--items", "6",       "--difficulty",  "hard",    "--json"};

TEST(Synth, WritesPicturesChatsAndOwners) {
  const TemporaryFolder folder;
  const fs::path out = folder / "items";
  output_of({"synth", "--out", out.string(), "--suite", "single", "--suite", "bind/shape-2x1", "--items", "2"});
  const std::vector<json> index = index_of(out);
  ASSERT_EQ(index.size(), 14u);
  for (const json& item : index) {
    const fs::path chat = out / item["messages"];
    const json messages = read_json(chat);
    ASSERT_EQ(messages.size(), 2 * item["turns"].size() - 1);
    EXPECT_EQ(messages.back()["role"], "user");
    for (size_t turn = 0; turn < item["turns"].size(); ++turn) {
      const json& content = messages[2 * turn]["content"];
      const Image image = read_image(chat.parent_path() / content[0]["path"]);
      EXPECT_EQ(image.width, 56);
      EXPECT_EQ(content[1]["text"], item["turns"][turn]["question"]);
      const json asked = item["turns"][turn].value("asked_patches", json::array());
      EXPECT_EQ(asked.empty(), item["cell"] == "count");
    }
    EXPECT_EQ(std::ranges::count(item["choices"], item["answer"]), 1);
  }
}

// Suites with smaller patches have a side and a grid of their own, and say what else an answer is read from.
TEST(Synth, WritesCrowdsAndScreens) {
  const TemporaryFolder folder;
  const fs::path out = folder / "items";
  output_of(
      {"synth", "--out", out.string(), "--suite", "crowded/spot-of", "--suite", "screens/before", "--items", "2"});
  const std::vector<json> index = index_of(out);
  ASSERT_EQ(index.size(), 4u);
  for (const json& item : index) {
    const bool is_screens = item["suite"] == "screens";
    EXPECT_EQ(item["grid"], json::array({12, 12}));
    ASSERT_EQ(item["turns"].size(), is_screens ? 4u : 1u);
    const Image image = read_image((out / item["messages"]).parent_path() / "0.png");
    EXPECT_EQ(image.width, 84);
    const json& first = item["turns"][0];
    // A spot and the object under it, or the button three screens ago.
    ASSERT_EQ(first["needed_patches"].size(), is_screens ? 1u : 2u);
    EXPECT_GE(first["needed_patches"][0].size(), 1u);
    EXPECT_GE(first["asked_patches"].size(), 1u);
    EXPECT_EQ(first.contains("pointer"), is_screens);
    EXPECT_EQ(first["objects"][0].contains("mark"), !is_screens);
    EXPECT_EQ(item["turns"].back().contains("needed_patches"), !is_screens);
  }
  EXPECT_EQ(index.back()["turns"][3]["question"].get<std::string>().substr(0, 15), "what colour was");
}

TEST(Synth, TheSameSeedGivesTheSameFiles) {
  const TemporaryFolder folder;
  const auto run = [&](const char* name, const char* seed) {
    return output_of({"synth", "--out", folder / name, "--suite", "detail", "--items", "3", "--seed", seed});
  };
  const std::string first = run("a", "1"), second = run("b", "1"), other = run("c", "2");
  EXPECT_EQ(first, second);
  EXPECT_NE(first, other);
  for (const char* file : {"index.jsonl", "detail/spot/000002/0.png", "detail/spot/000002/messages.json"}) {
    EXPECT_EQ(read_whole(folder.path() / "a" / file), read_whole(folder.path() / "b" / file));
    EXPECT_NE(read_whole(folder.path() / "a" / file), "");
  }
}

TEST(Synth, RefusesWithOneLineAndLeavesNothing) {
  const TemporaryFolder folder;
  folder.write("full/file", "x");
  const std::vector<Arguments> bad = {{"synth", "--out", folder / "full"},
                                      {"synth", "--out", folder / "new", "--suite", "bind/shape-9x9"},
                                      {"synth", "--out", folder / "new", "--split", "validation"},
                                      {"synth", "--out", folder / "new", "--difficulty", "easy"},
                                      {"synth", "--out", folder / "new", "--side", "60", "--grid", "8"},
                                      {"synth", "--out", folder / "new", "--suite", "screens", "--grid", "16"},
                                      {"synth", "--out", folder / "full/file/below"}};
  for (const Arguments& arguments : bad) {
    const Outcome outcome = run_espalier(arguments);
    EXPECT_EQ(outcome.status, 2) << outcome.err;
    EXPECT_EQ(std::ranges::count(outcome.err, '\n'), 1) << outcome.err;
    EXPECT_EQ(outcome.out, "");
  }
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), fs::directory_iterator()), 1);
}

TEST(Eval, ReportsEveryCellAndPolicy) {
  const json report =
      json_of(kSmallEval + Arguments{"--suite", "single/count", "--suite", "bind/colour-2x1", "--policy",
                                     "fastv:keep_ratio=1/2", "--policy", "random:keep_ratio=1/2", "--policy",
                                     "oracle:keep_ratio=1/2", "--policy", "resize:keep_ratio=1/4"});
  std::map<std::string, json> rows;
  int controls = 0;
  for (const json& c : report["cells"]) {
    controls += c["control"].get<bool>();
    EXPECT_GE(c["correct"], 0);
    EXPECT_LE(c["correct"], c["n"]);
    const double share = c["correct"].get<double>() / c["n"].get<double>();
    EXPECT_LE(c["low"].get<double>(), share);
    EXPECT_GE(c["high"].get<double>(), share);
    if (!c["control"]) rows[c["policy"].get<std::string>() + " " + c["cell"].get<std::string>()] = c;
  }
  EXPECT_EQ(rows.size(), 10u);
  EXPECT_EQ(controls, 4);  // no images twice, shuffled words, no examples
  EXPECT_EQ(rows["none count"]["n"], 6);
  EXPECT_EQ(rows["random:keep_ratio=1/2 count"]["n"], 30);
  EXPECT_EQ(rows["none count"]["tokens_mean"], 16);
  EXPECT_EQ(rows["none colour-2x1"]["tokens_mean"], 48);
  EXPECT_EQ(rows["oracle:keep_ratio=1/2 colour-2x1"]["tokens_mean"], 24);
  EXPECT_EQ(rows["random:keep_ratio=1/2 count"]["tokens_mean"], 8);
  EXPECT_GT(rows["fastv:keep_ratio=1/2 count"]["tokens_mean"], 8);  // all of them in the first layers
  EXPECT_LT(rows["oracle:keep_ratio=1/2 count"]["flops"], rows["none count"]["flops"]);
  // Also where the policy makes a smaller prompt.
  EXPECT_EQ(rows["resize:keep_ratio=1/4 count"]["flops_unpruned"], rows["none count"]["flops"]);
  EXPECT_TRUE(rows["none count"].value("difference", json()).is_null());
  EXPECT_TRUE(rows["oracle:keep_ratio=1/2 count"]["difference"]["mean"].is_number());
}

// The choice by the first logits, and the grade, made again item by item from `generate`.
TEST(Eval, AgreesWithGenerateOnTheItemsOfSynth) {
  const TemporaryFolder folder;
  const fs::path items = folder / "items";
  const Arguments cells = {"--suite", "single/colour", "--suite", "bind/shape-2x2"};
  output_of(Arguments{"synth", "--out", items.string(), "--items", "6"} + cells);
  std::map<std::string, int> correct, chosen;
  std::map<std::string, bool> is_ambiguous;  // candidates that share their first token
  for (const json& item : index_of(items)) {
    const json answer =
        json_of({"generate", "--model", kModel.string(), "--dtype", "f32", "--greedy", "--max-new-tokens", "8",
                 "--json", "--dump", folder / "dump", "--chat", (items / item["messages"]).string()});
    const SafetensorsFile dump = SafetensorsFile::open(folder / "dump.safetensors");
    const std::vector<double> logits = numbers(dump.tensors().at("logits"));
    const auto last_row = logits.end() - dump.tensors().at("logits").shape.back();
    std::vector<double> values;
    const std::vector<size_t> ids = first_ids(folder, answer["prompt"], item["choices"]);
    for (const size_t id : ids) values.push_back(last_row[static_cast<std::ptrdiff_t>(id)]);
    const auto best = static_cast<size_t>(std::ranges::max_element(values) - values.begin());
    correct[item["cell"]] += answer["text"] == item["answer"];
    chosen[item["cell"]] += item["choices"][best] == item["answer"];
    is_ambiguous[item["cell"]] |= std::set(ids.begin(), ids.end()).size() < ids.size();
  }
  // An oracle that keeps everything is unpruned.
  const json report = json_of(kSmallEval + cells + Arguments{"--policy", "oracle:keep_ratio=1", "--no-controls"});
  ASSERT_EQ(report["cells"].size(), 4u);
  for (const json& c : report["cells"]) {
    EXPECT_EQ(c["correct"], correct[c["cell"]]);
    EXPECT_EQ(c["chosen_correctly"], is_ambiguous[c["cell"]] ? json() : json(chosen[c["cell"]]));
  }
}

// What a control leaves is not the same for all of them: in-context without examples it is the choice of a trait.
TEST(Eval, ControlsSayTheirChance) {
  const json report = json_of(kSmallEval + Arguments{"--suite", "in-context/colour-1", "--suite", "screens/now"});
  std::map<std::string, double> chance;
  for (const json& c : report["cells"])
    chance[c["cell"].get<std::string>() + " " + c.value("control_name", json()).dump()] = c["chance"];
  EXPECT_EQ(chance, (std::map<std::string, double>{{"colour-1 null", 0.2},
                                                   {"colour-1 \"no-images\"", 0.2},
                                                   {"colour-1 \"shuffled-words\"", 1.0 / 3},
                                                   {"colour-1 \"no-examples\"", 1.0 / 3},
                                                   {"now null", 1.0 / 6},
                                                   {"now \"no-images\"", 1.0 / 6}}));
}

TEST(Eval, CurveDropsBeforeEachLayer) {
  const json report = json_of(kSmallEval + Arguments{"--suite", "detail", "--curve", "--no-controls"});
  ASSERT_EQ(report["cells"].size(), 8u);  // unpruned, layers 1 to 7 of 8
  for (int layer = 1; layer < 8; ++layer) {
    const json& row = report["cells"][static_cast<size_t>(layer)];
    EXPECT_EQ(row["policy"], "vtw:layer=" + std::to_string(layer));
    EXPECT_DOUBLE_EQ(row["tokens_mean"], 16.0 * layer / 8);
  }
}

TEST(Eval, WritesTablesAndPlot) {
  const TemporaryFolder folder;
  output_of(kSmallEval + Arguments{"--suite", "detail", "--policy", "uniform:keep_ratio=1/2", "--markdown",
                                   folder / "t.md", "--svg", folder / "p.svg"});
  EXPECT_NE(read_whole(folder / "t.md").find("uniform:keep_ratio=1/2"), std::string::npos);
  EXPECT_TRUE(read_whole(folder / "p.svg").starts_with("<svg "));
}

// One line per item, policy and draw; what the table counts is their sum.
TEST(Eval, WritesEveryAnswer) {
  const TemporaryFolder folder;
  const fs::path file = folder / "answers.jsonl";
  const Arguments cells = {"--suite",  "single/colour",         "--policy", "random:keep_ratio=1/2",
                           "--policy", "uniform:keep_ratio=1/4"};
  const json report = json_of(kSmallEval + cells + Arguments{"--answers", file});
  EXPECT_EQ(report["schema"], 1);
  EXPECT_EQ(report["model"], "llava15");
  EXPECT_EQ(report["complete"], true);
  std::map<std::string, std::vector<json>> answers;  // by policy and control
  std::istringstream lines(read_whole(file));
  for (std::string text; std::getline(lines, text);) {
    const json line = json::parse(text);
    answers[line["policy"].get<std::string>() + line["control"].dump()].push_back(line);
  }
  ASSERT_EQ(answers.size(), report["cells"].size());
  for (const json& c : report["cells"]) {
    const auto& of =
        answers.at(c["policy"].get<std::string>() + (c.contains("control_name") ? c["control_name"].dump() : "null"));
    EXPECT_EQ(of.size(), c["n"]);
    EXPECT_EQ(std::ranges::count_if(of, [](const json& a) { return a["right"] == true; }), c["correct"]);
    double tokens = 0;
    for (const json& a : of) {
      EXPECT_EQ(a["right"], a["answer"] == a["expected"]);
      tokens += a["tokens"].get<double>() / double(of.size());
    }
    EXPECT_NEAR(tokens, c["tokens_mean"].get<double>(), 1e-9);
  }
  EXPECT_EQ(answers.at("random:keep_ratio=1/2null").size(), 30U) << "five draws of six items";
  // Each as `generate` answers it, to the end.
  const fs::path items = folder / "items";
  output_of(Arguments{"synth", "--out", items.string(), "--items", "6", "--suite", "single/colour"});
  for (const json& item : index_of(items)) {
    const json whole = json_of({"generate", "--model", kModel.string(), "--dtype", "f32", "--greedy",
                                "--max-new-tokens", "8", "--json", "--chat", (items / item["messages"]).string()});
    const auto& mine = answers.at("nonenull");
    EXPECT_TRUE(std::ranges::any_of(mine, [&](const json& a) {
      return a["expected"] == item["answer"] && whole["text"].get<std::string>().find(a["answer"]) != std::string::npos;
    })) << whole["text"];
  }
}

// The times of items asked alone differ from run to run, and the date.
json without_times(json report) {
  for (json& cell : report["cells"]) cell.erase("first_token_ms"), cell.erase("select_prefill_ms");
  report.erase("date");
  report.erase("command");
  return report;
}

// Cut anywhere, also within a line, the file comes to the same bytes again, and the report to the same numbers.
TEST(Eval, ResumeGoesOnWhereItWasCut) {
  const TemporaryFolder folder;
  const fs::path file = folder / "answers.jsonl";
  const Arguments command = kSmallEval + Arguments{"--suite",   "single/colour",
                                                   "--suite",   "bind/shape-2x1",
                                                   "--policy",  "random:keep_ratio=1/2",
                                                   "--policy",  "uniform:keep_ratio=1/4",
                                                   "--answers", file,
                                                   "--resume"};
  const json undisturbed = without_times(json_of(command));
  const std::string whole = read_whole(file);
  EXPECT_EQ(without_times(json_of(command)), undisturbed);
  EXPECT_EQ(read_whole(file), whole) << "nothing was left to ask";
  std::vector<size_t> ends;
  for (size_t end = whole.find('\n'); end != std::string::npos; end = whole.find('\n', end + 1))
    ends.push_back(end + 1);
  for (const size_t length : {size_t{0}, ends[1], ends[8] + 30, ends[ends.size() / 2], whole.size() - 1}) {
    std::ofstream(file, std::ios::binary) << whole.substr(0, length);
    EXPECT_EQ(without_times(json_of(command)), undisturbed) << length;
    EXPECT_EQ(read_whole(file), whole) << length;
  }
}

// An answer that is in the file counts as it stands: it is not asked again.
TEST(Eval, ResumeAsksNothingTwice) {
  const TemporaryFolder folder;
  const fs::path file = folder / "answers.jsonl";
  const Arguments command =
      kSmallEval + Arguments{"--suite", "single/colour", "--no-controls", "--answers", file, "--resume", "--policy"};
  output_of(command + Arguments{"uniform:keep_ratio=1/4"});
  std::string all_right;
  std::istringstream lines(read_whole(file));
  for (std::string text; std::getline(lines, text);) {
    json line = json::parse(text);
    line["right"] = true;
    all_right += line.dump() + "\n";
  }
  std::ofstream(file, std::ios::binary) << all_right;
  const json report = json_of(command + Arguments{"uniform:keep_ratio=1/4", "--policy", "uniform:keep_ratio=1/2"});
  EXPECT_EQ(report["cells"][0]["correct"], 6);
  EXPECT_EQ(report["cells"][1]["correct"], 6);
  EXPECT_LT(report["cells"][2]["correct"], 6) << "the model has random weights";
  EXPECT_TRUE(read_whole(file).starts_with(all_right));
}

TEST(Eval, ResumeTakesNoAnswersOfAnotherRun) {
  const TemporaryFolder folder;
  const fs::path file = folder / "answers.jsonl";
  const Arguments command =
      kSmallEval +
      Arguments{"--suite", "single/colour", "--no-controls", "--policy", "uniform:keep_ratio=1/4", "--answers",
                file,      "--resume"};
  output_of(command);
  const std::string whole = read_whole(file);
  const Outcome outcome = run_espalier(command + Arguments{"--seed", "1"});
  EXPECT_EQ(outcome.status, 2);
  EXPECT_NE(outcome.err.find("answers.jsonl line 1: it is of another run (llava15 in f32, hard scenes, seed 0"),
            std::string::npos)
      << outcome.err;
  EXPECT_EQ(read_whole(file), whole);
  EXPECT_EQ(run_espalier({"eval", "--resume"}).status, 2) << "it needs a file";
}

TEST(Eval, FirstTokenIsWithEncode) {
  const json report =
      json_of(kSmallEval + Arguments{"--suite", "detail", "--policy", "uniform:keep_ratio=1/2", "--no-controls"});
  for (const json& c : report["cells"]) {
    EXPECT_GT(c["select_prefill_ms"], 0.0);
    EXPECT_GT(c["first_token_ms"], c["select_prefill_ms"]) << c["policy"];
  }
}

// What every policy had answered is shown and written.
TEST(Eval, InterruptKeepsWhatIsFinished) {
  const TemporaryFolder folder;
  const fs::path file = folder / "answers.jsonl";
  EspalierProcess process(Arguments{"eval", "--model", kModel.string(), "--dtype", "f32", "--side", "56", "--items",
                                    "100000", "--suite", "single/colour", "--policy", "uniform:keep_ratio=1/2",
                                    "--answers", file, "--json"});
  ::usleep(4'000'000);
  process.interrupt();
  const Outcome outcome = process.wait();
  EXPECT_EQ(outcome.status, 130);
  EXPECT_NE(outcome.err.find("what was finished is kept"), std::string::npos) << outcome.err;
  const json report = json::parse(outcome.out, nullptr, false);
  EXPECT_EQ(report["complete"], false);
  ASSERT_EQ(report["cells"].size(), 2U) << outcome.out;
  EXPECT_GT(report["cells"][0]["n"], 0);
  EXPECT_LT(report["cells"][0]["n"], 100000);
  EXPECT_EQ(report["cells"][0]["n"], report["cells"][1]["n"]);
  EXPECT_EQ(std::ranges::count(read_whole(file), '\n'), 2 * report["cells"][0]["n"].get<int64_t>());
}

// Without --model, the bundled model that knows the words of the cells; it answers what it was trained for.
TEST(Eval, TheSuitesChooseTheBundledModel) {
  const Arguments common = {"eval", "--items", "8", "--no-controls", "--policy", "uniform:keep_ratio=1/2", "--json"};
  for (const auto& [suite, model] : {std::pair{"crowded/colour-of", "crowded"}, std::pair{"single/shape", "demo"}}) {
    const json report = json_of(common + Arguments{"--suite", suite});
    EXPECT_EQ(report["model"], model);
    EXPECT_GE(report["cells"][0]["correct"], 6) << suite;
  }
}

TEST(Eval, BadInputIsOneLine) {
  const std::vector<Arguments> bad = {{"--policy", "fastv"},
                                      {"--suite", "crowded", "--suite", "single"},
                                      {"--policy", "oracle:layer=2"},
                                      {"--policy", "nosuch"},
                                      {"--suite", "nosuch"},
                                      {"--difficulty", "nosuch"},
                                      {"--items", "0"},
                                      {"--markdown", "/nosuch/folder/t.md"},
                                      {"--model", "/nosuch"}};
  for (const Arguments& arguments : bad) {
    const Outcome outcome = run_espalier(Arguments{"eval", "--items", "1"} + arguments);
    EXPECT_EQ(outcome.status, 2) << arguments[0] << outcome.err;
    EXPECT_EQ(std::ranges::count(outcome.err, '\n'), 1) << outcome.err;
  }
}

}  // namespace
}  // namespace espalier::test
