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

#include "synth/scene.h"
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
};

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
  };
  std::string suite;
  std::string name;  // "shape", "colour-2x1": classes x examples a class
  Task task{};
  double chance = 0;              // of a guess among Item::choices
  Attribute attribute{};          // bind
  int classes = 0;                // different words in the examples
  int shots = 0;                  // examples a class
  bool has_unseen_words = false;  // words that training never used for this attribute

  int num_turns() const { return classes * shots + 1; }
  std::string full_name() const { return suite + "/" + name; }
};

// In a fixed order.
std::span<const Cell> all_cells();
inline constexpr std::array<std::string_view, 4> kSuites = {"single", "detail", "bind", "define"};

// Those that the names ask for, suites ("bind") or cells ("bind/shape-2x1"), in the order of all_cells(); all of them
// without names. Throws Error for a name that is neither.
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
  kShuffledWords,  // the examples' words dealt out anew; half of the time (two classes) they come out the same
  kNoExamples,     // the query alone
};
std::string_view name_of(Control control);
bool applies(Control control, const Cell& cell);
Item make_control(const Cell& cell, Item item, Control control, uint64_t index);

// SHA-256 (hex) of texts and pixels, in order: what pins a list of items.
class ItemDigest {
 public:
  ItemDigest();
  ~ItemDigest();
  void add(const Item& item);
  std::string finish();

 private:
  std::unique_ptr<Sha256> hash_;
};

}  // namespace espalier::synth
