// SPDX-License-Identifier: Apache-2.0
// The suites crowded, in-context and screens: answers from the scenes' descriptions by brute force, balance, chance,
// and what the controls leave.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "synth/items.h"
#include "synth/test_set.h"
#include "tests/synth/reader.h"

namespace espalier::synth {
namespace {

using Task = Cell::Task;
constexpr Difficulty kPlain{}, kHard{true, true};

Item item_of(const Cell& cell, uint64_t index, const Difficulty& difficulty = kPlain) {
  return make_item(cell, Split::kTest, 0, index, difficulty);
}

template <size_t n>
bool is_among(const std::array<std::string_view, n>& names, const std::string& word) {
  return std::ranges::find(names, word) != names.end();
}

// The button with the pointer on it, by position.
const Object& pressed_on(const Scene& scene) {
  const Point at = scene.screen->pointer.centre;
  for (size_t b = 0; b < scene.objects.size(); ++b) {
    const Panel& face = scene.screen->faces[b];
    if (at.x >= face.corner.x && at.x < face.corner.x + face.width && at.y >= face.corner.y &&
        at.y < face.corner.y + face.height)
      return scene.objects[b];
  }
  throw std::logic_error("the pointer is on no button");
}

const Object& button_with(const Scene& scene, const std::string& label) {
  return *std::ranges::find_if(scene.objects, [&](const Object& o) { return name_of(o.shape) == label; });
}

// The label of the only button whose colour is (not) the one it had.
std::string the_one_that(bool changed, const Scene& before, const Scene& now) {
  std::vector<std::string> found;
  for (const Object& o : now.objects) {
    const std::string label(name_of(o.shape));
    if ((button_with(before, label).colour != o.colour) == changed) found.push_back(label);
  }
  return found.size() == 1 ? found[0] : "";
}

std::string trait_like(const Object& o, const std::string& example) {
  if (is_among(kColourNames, example)) return std::string(name_of(o.colour));
  if (is_among(kShapeNames, example)) return std::string(name_of(o.shape));
  return std::string(name_of(o.place()));
}

// The answer that a reader of the scenes and the texts alone would give; empty where there is not exactly one.
std::string solve(const Item& item) {
  const Turn& query = item.query();
  const std::string& text = query.question;
  const std::vector<std::string> words = test::words_of(text);
  if (query.scene.screen) {
    if (text == "what is pressed?") return std::string(name_of(pressed_on(query.scene).shape));
    if (text.starts_with("what colour is")) return std::string(name_of(button_with(query.scene, words[4]).colour));
    if (item.turns.size() < 4) return "";
    if (text == "what changed?") return the_one_that(true, item.turns[2].scene, query.scene);
    if (text == "what did not change?") return the_one_that(false, item.turns[2].scene, query.scene);
    return std::string(name_of(button_with(item.turns[0].scene, words[4]).colour));
  }
  const std::vector<size_t> meant = test::who_is_meant(query.scene, text);
  if (meant.size() != 1) return "";
  const Object& o = query.scene.objects[meant[0]];
  if (text.starts_with("what has")) return item.turns.size() > 1 ? trait_like(o, item.turns[0].answer) : "";
  if (text.starts_with("what spot")) return std::string(name_of(query.scene.marks[meant[0]].colour));
  if (text.starts_with("what shape")) return std::string(name_of(o.shape));
  if (text.starts_with("where")) return std::string(name_of(o.place()));
  return std::string(name_of(o.colour));
}

TEST(CrowdedItems, AnswersFollowFromScenesAndTexts) {
  for (const Cell& cell : crowded_cells())
    for (uint64_t i = 0; i < 80; ++i) {
      const Item item = item_of(cell, i, i % 2 ? kHard : kPlain);
      ASSERT_EQ(static_cast<int>(item.turns.size()), cell.num_turns());
      EXPECT_EQ(solve(item), item.query().answer) << cell.full_name() << " " << i << ": " << item.query().question;
      EXPECT_EQ(std::ranges::count(item.choices, item.query().answer), 1);
      EXPECT_EQ(std::set(item.choices.begin(), item.choices.end()).size(), item.choices.size());
      EXPECT_NEAR(cell.chance, 1.0 / static_cast<double>(item.choices.size()), 1e-9) << cell.full_name();
    }
}

// Earlier turns are answered as truly as the last one.
TEST(CrowdedItems, ExamplesAndEarlierScreensAreTrue) {
  for (const Cell& cell : crowded_cells())
    for (uint64_t i = 0; i < 40; ++i) {
      const Item item = item_of(cell, i);
      for (size_t t = 0; t + 1 < item.turns.size(); ++t) {
        const Turn& turn = item.turns[t];
        if (cell.task == Task::kScreens) {
          EXPECT_EQ(turn.question, "what is pressed?");
          EXPECT_EQ(turn.answer, name_of(pressed_on(turn.scene).shape));
        } else {
          const std::vector<size_t> meant = test::who_is_meant(turn.scene, turn.question);
          ASSERT_EQ(meant.size(), 1u);
          EXPECT_EQ(turn.answer, trait_like(turn.scene.objects[meant[0]], item.query().answer));
        }
      }
    }
}

TEST(CrowdedItems, AnswersAreBalanced) {
  constexpr uint64_t kItems = 240;
  for (const Cell& cell : crowded_cells()) {
    std::map<std::string, uint64_t> answers;
    for (uint64_t i = 0; i < kItems; ++i) ++answers[item_of(cell, i).query().answer];
    EXPECT_GE(answers.size(), 4u);
    for (const auto& [answer, n] : answers) EXPECT_EQ(n, kItems / answers.size()) << cell.full_name() << " " << answer;
  }
}

// Without pictures: no word of the texts says more about the answer than the stated chance. Five deviations.
TEST(CrowdedItems, TextAloneIsWorthChance) {
  constexpr uint64_t kItems = 1500;
  for (const Cell& cell : crowded_cells()) {
    std::map<std::string, std::map<std::string, double>> answers_beside;  // word -> answer -> times
    for (uint64_t i = 0; i < kItems; ++i) {
      const Item item = item_of(cell, i);
      std::set<std::string> words;
      for (size_t t = 0; t < item.turns.size(); ++t) {
        const std::string turn = std::to_string(item.turns.size() - t) + " ";
        for (const std::string& word : test::words_of(item.turns[t].question)) words.insert(turn + word);
        if (t + 1 < item.turns.size()) words.insert(turn + item.turns[t].answer);
      }
      for (const std::string& word : words) ++answers_beside[word][item.query().answer];
    }
    for (const auto& [word, answers] : answers_beside) {
      double n = 0, most = 0;
      for (const auto& [answer, times] : answers) n += times, most = std::max(most, times);
      if (n < 100) continue;
      EXPECT_LE(most / n, cell.chance + 5 * std::sqrt(cell.chance * (1 - cell.chance) / n)) << cell.full_name() << word;
    }
  }
}

// The key of the oracle and of the controls: what the answer is read from is there, and is less than a ninth.
TEST(CrowdedItems, NeededPatchesAreThereAndFew) {
  for (const Cell& cell : crowded_cells())
    for (uint64_t i = 0; i < 25; ++i) {
      const Item item = item_of(cell, i, kHard);
      bool is_somewhere = false;
      for (const Turn& turn : item.turns) {
        const auto covers = patch_covers(draw(turn.scene, cell.side), cell.grid, cell.grid);
        ASSERT_TRUE(turn.asked);
        std::vector<Cover> things = turn.needed;
        if (things.empty()) things.push_back(*turn.asked);
        for (const Cover thing : things) {
          const std::vector<int> patches = patches_showing(covers, thing);
          EXPECT_GE(patches.size(), 1u) << cell.full_name() << " " << i;
          EXPECT_LT(9 * patches.size(), covers.size()) << cell.full_name() << " " << i;
        }
        is_somewhere |= !turn.needed.empty();
        // A ninth holds at least half of each of them, or of many an equal share: they are dealt out in turn.
        std::vector<int> kept = by_need(covers, turn);
        EXPECT_EQ(std::set(kept.begin(), kept.end()).size(), covers.size());
        kept.resize(covers.size() / 9);
        const auto share = std::ssize(kept) / std::ssize(things);
        for (const Cover thing : things) {
          const std::vector<int> patches = patches_showing(covers, thing);
          const auto held = std::ranges::count_if(patches, [&](int p) { return std::ranges::count(kept, p) > 0; });
          EXPECT_GE(held, std::min((std::ssize(patches) + 1) / 2, share)) << cell.full_name() << " " << i;
        }
      }
      if (cell.task == Task::kScreens) {
        EXPECT_TRUE(is_somewhere);
      }
    }
}

// The same picture is asked about different objects, so no choice of patches made without the question holds what all
// of them need in a ninth.
TEST(CrowdedItems, OnePictureHasManyQuestions) {
  for (uint64_t i = 0; i < 100; ++i) {
    Draws draws(scene_seed(Split::kTest, 43, i));
    const std::vector<Member> members = draw_members(draws, draws.between(kFewestInCrowd, kMostInCrowd));
    const Scene scene = crowded_scene(draws.next(), kHard, members);
    const auto covers = patch_covers(draw(scene, kCrowdSide), kCrowdGrid, kCrowdGrid);
    std::set<int> needed;
    for (const CrowdQuestion& question : questions_about(members, CrowdAsk::kPlaceOf))
      for (const int p : patches_showing(covers, asked_by(question))) needed.insert(p);
    EXPECT_GT(9 * needed.size(), covers.size()) << i;
  }
}

TEST(CrowdedItems, SplitsAndSeedsShareNoScene) {
  std::set<uint64_t> seen;
  size_t scenes = 0;
  for (const Cell& cell : crowded_cells())
    for (const Split split : {Split::kTrain, Split::kTest})
      for (uint64_t seed = 0; seed < 3; ++seed)
        for (uint64_t i = 0; i < 10; ++i)
          for (const Turn& turn : make_item(cell, split, seed, i, kPlain).turns) {
            EXPECT_EQ(split_of(turn.scene.seed), split);
            seen.insert(turn.scene.seed);
            ++scenes;
          }
  EXPECT_EQ(seen.size(), scenes);
}

TEST(CrowdedItems, ControlsTakeAwayWhatTheySay) {
  constexpr uint64_t kItems = 300;
  for (const Cell& cell : crowded_cells()) {
    EXPECT_TRUE(applies(Control::kNoImages, cell));
    EXPECT_EQ(applies(Control::kShuffledWords, cell), cell.suite == "in-context");
    const bool needs_earlier = cell.name == "changed" || cell.name == "unchanged" || cell.name == "before";
    EXPECT_EQ(applies(Control::kNoExamples, cell), cell.suite == "in-context" || needs_earlier);
    EXPECT_EQ(chance_of(cell, Control::kNoImages), cell.chance);
    if (cell.suite == "in-context") {
      EXPECT_DOUBLE_EQ(chance_of(cell, Control::kNoExamples), 1.0 / 3);
      int still_right = 0;
      for (uint64_t i = 0; i < kItems; ++i) {
        const Item shuffled = make_control(cell, item_of(cell, i), Control::kShuffledWords, i);
        still_right += solve(shuffled) == shuffled.query().answer;
        // All examples show the same trait.
        for (size_t t = 0; t + 1 < shuffled.turns.size(); ++t) {
          const Turn& turn = shuffled.turns[t];
          const size_t meant = test::who_is_meant(turn.scene, turn.question).at(0);
          EXPECT_EQ(turn.answer, trait_like(turn.scene.objects[meant], shuffled.turns[0].answer));
        }
      }
      EXPECT_NEAR(still_right, kItems * chance_of(cell, Control::kShuffledWords), 41);  // five deviations
    }
    if (applies(Control::kNoExamples, cell)) {
      const Item alone = make_control(cell, item_of(cell, 3), Control::kNoExamples, 3);
      EXPECT_EQ(alone.turns.size(), 1u);
      EXPECT_EQ(solve(alone), "");  // nothing to answer it from
    }
  }
}

// What is asked in-context says nothing about what is meant: the three cells ask the same texts.
TEST(CrowdedItems, InContextQuestionsAreTheSameForAllTraits) {
  std::map<std::string, std::set<std::string>> texts;
  for (const Cell& cell : crowded_cells())
    if (cell.task == Task::kInContext)
      for (uint64_t i = 0; i < 120; ++i)
        for (const Turn& turn : item_of(cell, i).turns) texts[cell.name].insert(turn.question);
  ASSERT_EQ(texts.size(), 6u);
  for (const auto& [name, set] : texts) {
    EXPECT_EQ(set.size(), 6u);
    EXPECT_EQ(set, texts.begin()->second);
  }
}

// Reading the present screen in place of the first is worth chance.
TEST(CrowdedItems, TheFirstScreenIsNotThePresentOne) {
  const Cell cell = select_cells(std::vector<std::string>{"screens/before"}).at(0);
  constexpr int kItems = 900;
  int same = 0;
  for (uint64_t i = 0; i < kItems; ++i) {
    const Item item = item_of(cell, i);
    const std::string label = test::words_of(item.query().question)[4];
    same += name_of(button_with(item.query().scene, label).colour) == item.query().answer;
  }
  EXPECT_NEAR(same, kItems / 6.0, 56);  // five deviations
}

TEST(CrowdedItems, AreChosenByName) {
  EXPECT_EQ(select_cells({}).size(), all_cells().size());  // what the bundled model knows
  const std::vector<std::string> names = {"crowded", "screens/now"};
  const std::vector<Cell> cells = select_cells(names);
  ASSERT_EQ(cells.size(), 5u);
  EXPECT_EQ(cells.back().full_name(), "screens/now");
  for (const Cell& cell : crowded_cells()) EXPECT_TRUE(std::ranges::count(kCrowdedSuites, cell.suite));
}

// The published test set. A change of a drawing, a word or an order shows here.
TEST(CrowdedItems, TheTestSetIsPinned) {
  for (const TestSetPin& pin : kCrowdedTestSetPins) {
    const Cell cell = select_cells(std::vector<std::string>{std::string(pin.cell)}).at(0);
    ItemDigest plain, hard;
    for (uint64_t i = 0; i < kPinnedItems; ++i) {
      plain.add(item_of(cell, i, kPlain), cell.side);
      hard.add(item_of(cell, i, kHard), cell.side);
    }
    EXPECT_EQ(plain.finish(), pin.plain) << pin.cell;
    EXPECT_EQ(hard.finish(), pin.hard) << pin.cell;
  }
  EXPECT_EQ(std::size(kCrowdedTestSetPins), crowded_cells().size());
}

}  // namespace
}  // namespace espalier::synth
