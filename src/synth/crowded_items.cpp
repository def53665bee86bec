// SPDX-License-Identifier: Apache-2.0
#include "synth/crowded_items.h"

#include <algorithm>
#include <utility>

namespace espalier::synth {

namespace {

using Task = Cell::Task;

struct Asked {
  std::vector<Member> members;
  CrowdQuestion question;
};

// A crowd and a question about it. With `answer`, members are drawn until a question has it: what is asked about then
// follows from nothing that shows in the picture.
Asked draw_asked(Draws& draws, CrowdAsk ask, Trait trait, std::string_view answer = {}) {
  const int count = draws.between(kFewestInCrowd, kMostInCrowd);
  for (;;) {
    Asked asked{draw_members(draws, count), {}};
    std::vector<CrowdQuestion> questions = questions_about(asked.members, ask);
    std::erase_if(questions, [&](const CrowdQuestion& q) {
      return !answer.empty() && answer_to(asked.members, q, trait) != answer;
    });
    if (questions.empty()) continue;
    asked.question = questions[static_cast<size_t>(draws.index(questions.size()))];
    return asked;
  }
}

// What the answers of a question can be, whatever the picture shows: a mark never has its object's colour.
std::vector<std::string> choices_of(const Asked& asked, Trait trait) {
  const Member& m = asked.members[static_cast<size_t>(asked.question.object)];
  const auto colours_but = [](Colour colour) {
    std::vector<std::string> names = as_choices(kColourNames);
    std::erase(names, name_of(colour));
    return names;
  };
  switch (asked.question.ask) {
    case CrowdAsk::kColourOf:
      return as_choices(kColourNames);
    case CrowdAsk::kShapeOf:
      return as_choices(kShapeNames);
    case CrowdAsk::kPlaceOf:
      return as_choices(kPlaceNames);
    case CrowdAsk::kSpotOf:
      return colours_but(m.colour);
    case CrowdAsk::kWithSpot:
      break;
  }
  return trait == Trait::kColour  ? colours_but(m.mark)
         : trait == Trait::kShape ? as_choices(kShapeNames)
                                  : as_choices(kPlaceNames);
}

std::vector<std::string> all_answers(CrowdAsk ask, Trait trait) {
  if (ask == CrowdAsk::kShapeOf || (ask == CrowdAsk::kWithSpot && trait == Trait::kShape))
    return as_choices(kShapeNames);
  if (ask == CrowdAsk::kPlaceOf || (ask == CrowdAsk::kWithSpot && trait == Trait::kPlace))
    return as_choices(kPlaceNames);
  return as_choices(kColourNames);
}

class CrowdedItemMaker {
 public:
  CrowdedItemMaker(const Cell& cell, Split split, uint64_t seed, uint64_t index, const Difficulty& difficulty)
      : cell_(cell),
        split_(split),
        index_(index),
        difficulty_(difficulty),
        draws_(item_draws(cell, split, seed, index)),
        scenes_(draws_.next()) {}

  Item make() {
    if (cell_.task == Task::kScreens) {
      add_screens();
    } else {
      for (int i = 0; i < cell_.shots; ++i) add_crowd(draw_asked(draws_, cell_.crowd_ask, cell_.trait));
      const std::vector<std::string> answers = all_answers(cell_.crowd_ask, cell_.trait);
      const Asked asked = draw_asked(draws_, cell_.crowd_ask, cell_.trait, answers[index_ % answers.size()]);
      add_crowd(asked);
      item_.choices = choices_of(asked, cell_.trait);
    }
    return std::move(item_);
  }

 private:
  uint64_t next_seed() { return scene_seed(split_, scenes_, item_.turns.size()); }

  void add_crowd(const Asked& asked) {
    const uint64_t seed = next_seed();
    item_.turns.push_back({.scene = crowded_scene(seed, difficulty_, asked.members),
                           .question = text_of(asked.members, asked.question),
                           .answer = std::string(answer_to(asked.members, asked.question, cell_.trait)),
                           .asked = asked_by(asked.question),
                           .needed = needed_by(asked.question)});
  }

  void add_screens() {
    const bool is_about_colour = cell_.screen_ask == ScreenAsk::kNow || cell_.screen_ask == ScreenAsk::kBefore;
    item_.choices = is_about_colour ? as_choices(kColourNames) : as_choices(kShapeNames);
    const int answer = static_cast<int>(index_ % item_.choices.size());
    const ScreenSequence sequence = draw_screens(draws_, cell_.screen_ask, answer);
    for (int number = 0; number < kNumScreens; ++number) {
      const uint64_t seed = next_seed();
      const auto pressed = static_cast<uint8_t>(sequence.screens[static_cast<size_t>(number)].pressed);
      Turn turn{.scene = screen_scene(seed, difficulty_, sequence, number),
                .question = ask_pressed(),
                .answer = std::string(name_of(sequence.labels[pressed])),
                .asked = Cover{Cover::By::kObject, pressed},
                .needed = needed_on(sequence, cell_.screen_ask, number)};
      if (number == kNumScreens - 1) {
        turn.question = text_of(sequence, cell_.screen_ask);
        turn.answer = answer_to(sequence, cell_.screen_ask);
        turn.asked = Cover{Cover::By::kObject, static_cast<uint8_t>(sequence.asked)};
      }
      item_.turns.push_back(std::move(turn));
    }
  }

  const Cell& cell_;
  Split split_;
  uint64_t index_;
  Difficulty difficulty_;
  Draws draws_;      // what is asked
  uint64_t scenes_;  // the stream of its scenes' seeds
  Item item_;
};

}  // namespace

std::vector<Cell> make_crowded_cells() {
  std::vector<Cell> cells;
  const auto add = [&](const char* suite, std::string name, Task task, size_t choices) -> Cell& {
    return cells.emplace_back(Cell{.suite = suite,
                                   .name = std::move(name),
                                   .task = task,
                                   .chance = 1.0 / static_cast<double>(choices),
                                   .side = kCrowdSide,
                                   .grid = kCrowdGrid});
  };
  constexpr size_t kOtherColours = kNumColours - 1;  // than one that the question names
  const auto crowded = [&](const char* name, CrowdAsk ask, size_t choices) {
    add("crowded", name, Task::kCrowded, choices).crowd_ask = ask;
  };
  crowded("colour-of", CrowdAsk::kColourOf, kNumColours);
  crowded("shape-of", CrowdAsk::kShapeOf, kNumShapes);
  crowded("place-of", CrowdAsk::kPlaceOf, kNumPlaces);
  crowded("spot-of", CrowdAsk::kSpotOf, kOtherColours);
  constexpr std::array<size_t, kNumTraits> kTraitChoices = {kOtherColours, kNumShapes, kNumPlaces};
  for (const int shots : {1, 3})
    for (size_t t = 0; t < kNumTraits; ++t) {
      Cell& cell = add("in-context", std::string(kTraitNames[t]) + "-" + std::to_string(shots), Task::kInContext,
                       kTraitChoices[t]);
      cell.classes = 1;
      cell.shots = shots;
      cell.crowd_ask = CrowdAsk::kWithSpot;
      cell.trait = static_cast<Trait>(t);
    }
  const auto screens = [&](const char* name, ScreenAsk ask, size_t choices) {
    add("screens", name, Task::kScreens, choices).screen_ask = ask;
  };
  screens("pressed", ScreenAsk::kPressed, kNumShapes);
  screens("now", ScreenAsk::kNow, kNumColours);
  screens("changed", ScreenAsk::kChanged, kNumShapes);
  screens("unchanged", ScreenAsk::kUnchanged, kNumShapes);
  screens("before", ScreenAsk::kBefore, kNumColours);
  return cells;
}

Item make_crowded_item(const Cell& cell, Split split, uint64_t seed, uint64_t index, const Difficulty& difficulty) {
  return CrowdedItemMaker(cell, split, seed, index, difficulty).make();
}

}  // namespace espalier::synth
