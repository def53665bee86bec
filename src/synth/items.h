// SPDX-License-Identifier: Apache-2.0
// The benchmark's questions: suites of cells, each an endless list of items that a seed fixes. An item is a
// conversation of scenes, questions and answers whose last turn is the query. Classes of the query and the place of its
// examples are balanced over consecutive items. Not here: asking a model (src/eval/), files on disk (export.h).
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "synth/crowd.h"
#include "synth/scene.h"
#include "synth/screens.h"
#include "synth/wording.h"

namespace espalier {
class Sha256;
}

namespace espalier::synth {

struct Turn {
  Scene scene;
  std::string question;
  std::string answer;
  std::optional<Cover> asked;  // the thing that the question is about; none: all objects (counting)
  bool is_blank = false;       // the picture is one grey: a control
  // In crowds and on screens: all of this picture that the item's last answer is read from, such as a mark and the
  // object that it lies on, a button on an earlier screen, all buttons where one of them did not change.
  std::vector<Cover> needed = {};
};

// Patches of a turn's picture, most needed first: what is needed, in turn, or where nothing is, what is asked about;
// what else is asked about, spot, pointer and objects in turn; distractors, clutter, windows, background.
std::vector<int> by_need(std::span<const Cover> covers, const Turn& turn);

// The picture of a turn.
Image picture_of(const Turn& turn, int side = kDefaultSide);

struct Cell {
  enum class Task : uint8_t {
    // suite "single": one picture, one question
    kShape,
    kColour,
    kCount,
    kPosition,  // where is the star?
    kColourOf,  // what colour is the star?
    kShapeOf,   // what shape is red?
    // suite "detail"
    kSpot,
    // suite "bind": examples name an attribute with made-up words, the query asks for the word
    kBind,
    // suite "define": examples name an attribute, the query asks about the named thing among three objects
    kDefinedColour,
    kDefinedShape,
    kDefinedPosition,
    // suite "crowded": one crowded picture, one question that singles out one of its objects
    kCrowded,
    // suite "in-context": crowded pictures and always the same question; the examples' answers show which trait is
    // meant
    kInContext,
    // suite "screens": four screens of a desktop; on the first three the question is what is pressed
    kScreens,
  };
  std::string suite;
  std::string name;  // "shape", "colour-2x1": classes x examples a class
  Task task{};
  double chance = 0;              // of a guess among Item::choices
  Attribute attribute{};          // bind
  int classes = 0;                // different words in the examples; in-context: 1
  int shots = 0;                  // examples a class
  bool has_unseen_words = false;  // words that training never used for this attribute

  CrowdAsk crowd_ask{};     // crowded
  Trait trait{};            // in-context: what the examples show to be meant
  ScreenAsk screen_ask{};   // screens
  int side = kDefaultSide;  // pixels and patches along a side that its pictures are made for
  int grid = 8;

  int num_turns() const { return task == Task::kScreens ? kNumScreens : classes * shots + 1; }
  std::string full_name() const { return suite + "/" + name; }
};

// In a fixed order: what the demo model is trained for, and what is meant for a model with more and smaller patches,
// which tells methods apart that keep any of a few objects.
std::span<const Cell> all_cells();
inline constexpr std::array<std::string_view, 4> kSuites = {"single", "detail", "bind", "define"};
std::span<const Cell> crowded_cells();
inline constexpr std::array<std::string_view, 3> kCrowdedSuites = {"crowded", "in-context", "screens"};

// Those that the names ask for, suites ("bind") or cells ("bind/shape-2x1"), in the order of all_cells() and then
// crowded_cells(); all_cells() without names. Throws Error for a name that is neither.
std::vector<Cell> select_cells(std::span<const std::string> names);

struct Item {
  std::vector<Turn> turns;           // the last is the query
  std::vector<std::string> choices;  // candidate answers, the right one among them
  const Turn& query() const { return turns.back(); }
};

// The same for the same arguments, whatever else was made before. `seed` names a list of items; published numbers use
// 0.
Item make_item(const Cell& cell, Split split, uint64_t seed, uint64_t index, const Difficulty& difficulty);

// The same items made unanswerable: a model that reads what it should falls to chance.
enum class Control : uint8_t {
  kNoImages,       // every picture blank
  kShuffledWords,  // the examples' words dealt out anew; half of the time (two classes) they come out the same.
                   // in-context: the examples show another of the three traits, as often the right one as any
  kNoExamples,     // the query alone; screens: where the answer needs an earlier one
};
inline constexpr std::array kControls = {Control::kNoImages, Control::kShuffledWords, Control::kNoExamples};
std::string_view name_of(Control control);
bool applies(Control control, const Cell& cell);
// The best share of right answers that is left without what a control takes away. In-context without examples: of the
// three cells together, whose items look alike then.
double chance_of(const Cell& cell, Control control);
Item make_control(const Cell& cell, Item item, Control control, uint64_t index);

// SHA-256 (hex) of texts and pixels, in order: what pins a list of items.
class ItemDigest {
 public:
  ItemDigest();
  ~ItemDigest();
  void add(const Item& item, int side = kDefaultSide);
  std::string finish();

 private:
  std::unique_ptr<Sha256> hash_;
};

}  // namespace espalier::synth
