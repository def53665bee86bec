// SPDX-License-Identifier: Apache-2.0
#include "synth/items.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "synth/test_set.h"

namespace espalier::synth {
namespace {

constexpr Difficulty kPlain{}, kHard{true, true};

int class_of(const Scene& scene, Attribute attribute) {
  if (attribute == Attribute::kShape) return static_cast<int>(scene.objects[0].shape);
  if (attribute == Attribute::kColour) return static_cast<int>(scene.objects[0].colour);
  return static_cast<int>(scene.spot->colour);
}

const Object* object_with(const Scene& scene, auto has) {
  const auto found = std::ranges::find_if(scene.objects, has);
  return found == scene.objects.end() ? nullptr : &*found;
}

// The answer that a reader of the scene and the examples alone would give.
std::string solve(const Cell& cell, const Item& item) {
  const Scene& scene = item.query().scene;
  const std::string& question = item.query().question;
  const std::string last = question.substr(question.rfind(' ') + 1, question.size() - question.rfind(' ') - 2);
  std::map<std::string, int> meaning;
  for (size_t i = 0; i + 1 < item.turns.size(); ++i)
    meaning[item.turns[i].answer] = class_of(item.turns[i].scene, cell.attribute);
  const auto is_named = [&](const Object& o) {
    return name_of(o.shape) == last || (meaning.contains(last) && static_cast<int>(o.shape) == meaning[last]);
  };
  const auto is_coloured = [&](const Object& o) {
    return name_of(o.colour) == last || (meaning.contains(last) && static_cast<int>(o.colour) == meaning[last]);
  };
  if (question == "what shape?") return std::string(name_of(scene.objects[0].shape));
  if (question == "what colour?") return std::string(name_of(scene.objects[0].colour));
  if (question == "what spot?") return std::string(name_of(scene.spot->colour));
  if (question == "how many objects?") return std::string(name_of_count(static_cast<int>(scene.objects.size())));
  if (question.starts_with("where")) return std::string(name_of(object_with(scene, is_named)->place()));
  if (question.starts_with("what colour")) return std::string(name_of(object_with(scene, is_named)->colour));
  if (question.starts_with("what shape is")) return std::string(name_of(object_with(scene, is_coloured)->shape));
  for (const auto& [word, value] : meaning)
    if (value == class_of(scene, cell.attribute)) return word;
  return "";
}

// The made-up word that the last question is about.
std::string defined_word(const Item& item) {
  for (size_t t = 0; t + 1 < item.turns.size(); ++t)
    if (item.query().question.find(" " + item.turns[t].answer + "?") != std::string::npos) return item.turns[t].answer;
  return "";
}

TEST(Items, AnswersFollowFromScenesAndExamples) {
  for (const Cell& cell : all_cells())
    for (uint64_t i = 0; i < 60; ++i)
      for (const Difficulty& difficulty : {kPlain, kHard}) {
        const Item item = make_item(cell, Split::kTest, 0, i, difficulty);
        EXPECT_EQ(static_cast<int>(item.turns.size()), cell.num_turns());
        EXPECT_EQ(solve(cell, item), item.query().answer) << cell.suite << "/" << cell.name << " " << i;
        EXPECT_EQ(std::ranges::count(item.choices, item.query().answer), 1);
        EXPECT_NEAR(cell.chance, 1.0 / static_cast<double>(item.choices.size()), 1e-9);
        EXPECT_EQ(std::set(item.choices.begin(), item.choices.end()).size(), item.choices.size());
      }
}

// What a turn is about shows the answer: the spot its colour, an object its shape, colour or place.
TEST(Items, TheAskedThingShowsTheAnswer) {
  for (const Cell& cell : all_cells())
    for (uint64_t i = 0; i < 30; ++i)
      for (const Turn& turn : make_item(cell, Split::kTest, 0, i, kHard).turns) {
        EXPECT_EQ(turn.asked.has_value(), cell.task != Cell::Task::kCount);
        if (!turn.asked) continue;
        const bool is_about_spot = turn.question.find("spot") != std::string::npos;
        EXPECT_EQ(turn.asked->by, is_about_spot ? Cover::By::kSpot : Cover::By::kObject);
        if (is_about_spot || turn.question.starts_with("name")) continue;
        const Object& o = turn.scene.objects.at(turn.asked->object);
        EXPECT_TRUE(turn.answer == name_of(o.shape) || turn.answer == name_of(o.colour) ||
                    turn.answer == name_of(o.place()));
      }
}

TEST(Items, QueryClassesAreBalanced) {
  constexpr uint64_t kItems = 240;
  for (const Cell& cell : all_cells()) {
    std::map<std::string, int> answers;
    std::map<int, int> classes;
    for (uint64_t i = 0; i < kItems; ++i) {
      const Item item = make_item(cell, Split::kTest, 0, i, kPlain);
      if (cell.task == Cell::Task::kBind) {
        ++classes[class_of(item.query().scene, cell.attribute)];
      } else {
        ++answers[item.query().answer];
      }
    }
    for (const auto& [answer, n] : answers)
      EXPECT_EQ(n, static_cast<int>(kItems / answers.size())) << cell.name << answer;
    for (const auto& [value, n] : classes) EXPECT_EQ(n, static_cast<int>(kItems / 6)) << cell.name;
    EXPECT_GE(answers.size() + classes.size(), 4u);
  }
}

// Neither "the word of the last example" nor "of the first" is worth more than chance.
TEST(Items, TheAnswersPlaceAmongExamplesIsBalanced) {
  for (const Cell& cell : all_cells()) {
    if (cell.classes == 0) continue;
    constexpr int kItems = 960;
    int last = 0, first = 0;
    for (uint64_t i = 0; i < kItems; ++i) {
      const Item item = make_item(cell, Split::kTest, 0, i, kPlain);
      const std::string word = cell.task == Cell::Task::kBind ? item.query().answer : defined_word(item);
      first += item.turns.front().answer == word;
      last += item.turns[item.turns.size() - 2].answer == word;
    }
    const double chance = 1.0 / cell.classes;
    EXPECT_NEAR(first, kItems * chance, 1) << cell.name;  // exact
    EXPECT_NEAR(last, kItems * chance, 75) << cell.name;  // drawn: five deviations
  }
}

TEST(Items, UnseenWordsAreThoseThatTrainingNeverUses) {
  for (const Cell& cell : all_cells()) {
    if (cell.classes == 0) continue;
    for (uint64_t i = 0; i < 60; ++i) {
      const Item item = make_item(cell, Split::kTest, 0, i, kPlain);
      for (size_t t = 0; t + 1 < item.turns.size(); ++t) {
        const auto word = std::ranges::find(kMadeUpWords, item.turns[t].answer) - kMadeUpWords.begin();
        ASSERT_LT(word, kNumMadeUpWords);
        EXPECT_EQ(is_held_out(cell.attribute, static_cast<int>(word)), cell.has_unseen_words) << cell.name;
      }
    }
  }
}

TEST(Items, SplitsAndSeedsShareNoScene) {
  std::set<uint64_t> seen;
  size_t scenes = 0;
  for (const Cell& cell : all_cells())
    for (const Split split : {Split::kTrain, Split::kTest})
      for (uint64_t seed = 0; seed < 3; ++seed)
        for (uint64_t i = 0; i < 20; ++i)
          for (const Turn& turn : make_item(cell, split, seed, i, kPlain).turns) {
            EXPECT_EQ(split_of(turn.scene.seed), split);
            seen.insert(turn.scene.seed);
            ++scenes;
          }
  EXPECT_EQ(seen.size(), scenes);
}

TEST(Items, ControlsTakeAwayWhatTheySay) {
  for (const Cell& cell : all_cells()) {
    const Item item = make_item(cell, Split::kTest, 0, 3, kPlain);
    const Item blank = make_control(cell, item, Control::kNoImages, 3);
    for (const Turn& turn : blank.turns) {
      const Image picture = picture_of(turn);
      EXPECT_TRUE(std::ranges::all_of(picture.rgb, [](uint8_t c) { return c == 128; }));
    }
    EXPECT_EQ(applies(Control::kShuffledWords, cell), cell.classes > 0);
    if (cell.classes == 0) continue;
    const Item alone = make_control(cell, item, Control::kNoExamples, 3);
    EXPECT_EQ(alone.turns.size(), 1u);
    EXPECT_EQ(alone.query().answer, item.query().answer);
    int still_right = 0;
    constexpr uint64_t kItems = 800;
    for (uint64_t i = 0; i < kItems; ++i) {
      const Item shuffled = make_control(cell, make_item(cell, Split::kTest, 0, i, kPlain), Control::kShuffledWords, i);
      still_right += solve(cell, shuffled) == shuffled.query().answer;
    }
    // Five deviations. Of defined things the other one may by chance give the same answer: never here, nothing is
    // twice.
    EXPECT_NEAR(still_right, static_cast<double>(kItems) / cell.classes, 75) << cell.name;
  }
}

// The published test set. A change of a drawing, a word or an order shows here.
TEST(Items, TheTestSetIsPinned) {
  for (const TestSetPin& pin : kTestSetPins) {
    const auto cell =
        std::ranges::find_if(all_cells(), [&](const Cell& c) { return c.suite + "/" + c.name == pin.cell; });
    ASSERT_NE(cell, all_cells().end()) << pin.cell;
    ItemDigest plain, hard;
    for (uint64_t i = 0; i < kPinnedItems; ++i) {
      plain.add(make_item(*cell, Split::kTest, 0, i, kPlain));
      hard.add(make_item(*cell, Split::kTest, 0, i, kHard));
    }
    EXPECT_EQ(plain.finish(), pin.plain) << pin.cell;
    EXPECT_EQ(hard.finish(), pin.hard) << pin.cell;
  }
  EXPECT_EQ(std::size(kTestSetPins), all_cells().size());
}

}  // namespace
}  // namespace espalier::synth
