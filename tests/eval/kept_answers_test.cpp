// SPDX-License-Identifier: Apache-2.0
#include "eval/kept_answers.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "espalier/error.h"
#include "tests/support/temporary_folder.h"

namespace espalier::eval {
namespace {

const AnsweredRun kRun{.model = "demo", .dtype = "f32", .difficulty = "hard", .seed = 3, .side = 56};

EvalAnswer answer(uint64_t item) {
  return {.suite = "bind",
          .cell = "shape-2x1",
          .control = synth::Control::kShuffledWords,
          .item = item,
          .policy = "catp:keep_ratio=1/9",
          .draw = 2,
          .answer = "dax\n\xff",
          .expected = "dax",
          .is_correct = true,
          .is_chosen_correctly = false,
          .tokens = 12.1,
          .flops = 1.1e9,
          .flops_unpruned = 3.3e9};
}

TEST(KeptAnswers, AreALineEach) {
  const std::string line = to_json_line(kRun, answer(7));
  EXPECT_EQ(std::ranges::count(line, '\n'), 1);
  EXPECT_TRUE(line.ends_with('\n'));
  const auto read = nlohmann::json::parse(line);
  EXPECT_EQ(read["schema"], 1);
  EXPECT_EQ(read["model"], "demo");
  EXPECT_EQ(read["seed"], 3);
  EXPECT_EQ(read["item"], 7);
  EXPECT_EQ(read["control"], "shuffled-words");
  EXPECT_EQ(read["expected"], "dax");
  EXPECT_EQ(read["right"], true);
  EXPECT_EQ(read["tokens"], 12.1);
  EvalAnswer plain = answer(7);
  plain.control.reset();
  plain.is_chosen_correctly.reset();
  EXPECT_EQ(nlohmann::json::parse(to_json_line(kRun, plain))["control"], nullptr);
}

TEST(KeptAnswers, AreFoundAsTheyWere) {
  const TemporaryFolder folder;
  EvalAnswer plain = answer(8);
  plain.control.reset();
  plain.is_chosen_correctly.reset();
  {
    KeptAnswers kept(folder / "a.jsonl", kRun);
    EXPECT_TRUE(kept.found().empty());
    kept.add(answer(7));
    kept.add(plain);
  }
  const KeptAnswers kept(folder / "a.jsonl", kRun);
  ASSERT_EQ(kept.found().size(), 2U);
  const EvalAnswer& first = kept.found()[0];
  EXPECT_EQ(first.cell, "shape-2x1");
  EXPECT_EQ(first.control, synth::Control::kShuffledWords);
  EXPECT_EQ(first.item, 7U);
  EXPECT_EQ(first.draw, 2);
  EXPECT_EQ(first.is_correct, true);
  EXPECT_EQ(first.is_chosen_correctly, false);
  EXPECT_EQ(first.tokens, 12.1);
  EXPECT_EQ(first.flops, 1.1e9);
  EXPECT_EQ(first.flops_unpruned, 3.3e9);
  EXPECT_EQ(kept.found()[1].control, std::nullopt);
  EXPECT_EQ(kept.found()[1].is_chosen_correctly, std::nullopt);
}

TEST(KeptAnswers, OfAnotherRunOrBrokenAreRefused) {
  const TemporaryFolder folder;
  const auto file = folder.write("a.jsonl", to_json_line(kRun, answer(7)));
  AnsweredRun other_model = kRun, other_seed = kRun, other_side = kRun;
  other_model.model = "demo2";
  other_seed.seed = 4;
  other_side.side = 57;
  for (const AnsweredRun& other : {other_model, other_seed, other_side})
    EXPECT_ERROR(KeptAnswers(file, other),
                 "a.jsonl line 1: it is of another run (demo in f32, hard scenes, seed 3, side 56)");
  EXPECT_ERROR(KeptAnswers(folder.write("b.jsonl", "{}\n"), kRun), "b.jsonl line 1");
  auto json = nlohmann::json::parse(to_json_line(kRun, answer(7)));
  json["control"] = "no-such";
  EXPECT_ERROR(KeptAnswers(folder.write("c.jsonl", json.dump() + "\n"), kRun), "the name of a control");
}

}  // namespace
}  // namespace espalier::eval
