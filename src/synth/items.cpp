// SPDX-License-Identifier: Apache-2.0
#include "synth/items.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "base/sha256.h"
#include "espalier/error.h"
#include "synth/crowded_items.h"
#include "synth/draws.h"

namespace espalier::synth {

namespace {

using Task = Cell::Task;

std::vector<Cell> make_cells() {
  const auto one = [](const char* suite, const char* name, Task task, int answers) {
    return Cell{.suite = suite, .name = name, .task = task, .chance = 1.0 / answers};
  };
  std::vector<Cell> cells = {
      one("single", "shape", Task::kShape, kNumShapes),         one("single", "colour", Task::kColour, kNumColours),
      one("single", "count", Task::kCount, kMaxObjects),        one("single", "position", Task::kPosition, kNumPlaces),
      one("single", "colour-of", Task::kColourOf, kNumColours), one("single", "shape-of", Task::kShapeOf, kNumShapes),
      one("detail", "spot", Task::kSpot, kNumColours)};
  constexpr std::array<std::pair<int, int>, 5> kSizes = {{{2, 1}, {2, 2}, {2, 4}, {4, 1}, {4, 2}}};
  for (int a = 0; a < kNumAttributes; ++a) {
    const auto attribute = static_cast<Attribute>(a);
    const auto add = [&](int classes, int shots, bool unseen) {
      std::string name(name_of(attribute));
      name += "-" + std::to_string(classes) + "x" + std::to_string(shots) + (unseen ? "-unseen" : "");
      cells.push_back({"bind", name, Task::kBind, 1.0 / classes, attribute, classes, shots, unseen});
    };
    for (const auto& [classes, shots] : kSizes) add(classes, shots, false);
    add(2, 1, true);
    add(2, 2, true);
  }
  const auto define = [&](const char* name, Task task, Attribute attribute) {
    cells.push_back({"define", name, task, 0.5, attribute, 2, 1, false});
  };
  define("colour-of", Task::kDefinedColour, Attribute::kShape);
  define("position-of", Task::kDefinedPosition, Attribute::kShape);
  define("shape-of", Task::kDefinedShape, Attribute::kColour);
  return cells;
}

uint64_t hash_of(std::string_view text) {  // FNV-1a
  uint64_t hash = 0xCBF29CE484222325ULL;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3ULL;
  return hash;
}

// Makes one item.
class ItemMaker {
 public:
  ItemMaker(const Cell& cell, Split split, uint64_t seed, uint64_t index, const Difficulty& difficulty)
      : cell_(cell),
        split_(split),
        index_(index),
        difficulty_(difficulty),
        draws_(item_draws(cell, split, seed, index)),
        scenes_(draws_.next()) {}

  Item make() {
    switch (cell_.task) {
      case Task::kBind:
        bind();
        break;
      case Task::kDefinedColour:
      case Task::kDefinedShape:
      case Task::kDefinedPosition:
        define();
        break;
      default:
        single();
    }
    return std::move(item_);
  }

 private:
  uint64_t next_seed() { return scene_seed(split_, scenes_, item_.turns.size()); }
  // Classes follow each other; `step` items in a row share one.
  int balanced(int classes, int step = 1) const {
    return static_cast<int>(index_ / static_cast<uint64_t>(step) % static_cast<uint64_t>(classes));
  }

  Scene solo(const WantedObject& wanted = {}, std::optional<Colour> spot = {}) {
    return solo_scene(next_seed(), difficulty_, wanted, spot);
  }
  Scene solo_of(Attribute attribute, int value) {
    if (attribute == Attribute::kShape) return solo({.shape = static_cast<Shape>(value), .colour = {}, .place = {}});
    if (attribute == Attribute::kColour) return solo({.shape = {}, .colour = static_cast<Colour>(value), .place = {}});
    return solo({}, static_cast<Colour>(value));
  }

  void add(Scene scene, std::string question, std::string_view answer, std::optional<Cover> asked) {
    item_.turns.push_back({std::move(scene), std::move(question), std::string(answer), asked});
  }
  static Cover cover_of(size_t index) { return {Cover::By::kObject, static_cast<uint8_t>(index)}; }
  static Cover shown_by(Attribute attribute) {
    return attribute == Attribute::kSpot ? Cover{Cover::By::kSpot} : cover_of(0);
  }

  void single() {
    const auto shape = static_cast<Shape>(balanced(kNumShapes));
    const auto colour = static_cast<Colour>(balanced(kNumColours));
    switch (cell_.task) {
      case Task::kShape:
        add(solo_of(Attribute::kShape, balanced(kNumShapes)), ask(Attribute::kShape), name_of(shape), cover_of(0));
        item_.choices = as_choices(kShapeNames);
        break;
      case Task::kColour:
        add(solo_of(Attribute::kColour, balanced(kNumColours)), ask(Attribute::kColour), name_of(colour), cover_of(0));
        item_.choices = as_choices(kColourNames);
        break;
      case Task::kSpot:
        add(solo_of(Attribute::kSpot, balanced(kNumColours)), ask(Attribute::kSpot), name_of(colour),
            shown_by(Attribute::kSpot));
        item_.choices = as_choices(kColourNames);
        break;
      case Task::kCount: {
        const int count = 1 + balanced(kMaxObjects);
        add(group_scene(next_seed(), difficulty_, count), ask_count(), name_of_count(count), std::nullopt);
        item_.choices = as_choices(kNumberNames);
        break;
      }
      default:
        about_one_of_several(shape, colour);
    }
  }

  // Two to four objects; the first is asked about.
  void about_one_of_several(Shape shape, Colour colour) {
    WantedObject wanted;
    const auto place = static_cast<Place>(balanced(kNumPlaces));
    if (cell_.task == Task::kPosition) wanted.place = place;
    if (cell_.task == Task::kColourOf) wanted.colour = colour;
    if (cell_.task == Task::kShapeOf) wanted.shape = shape;
    const Scene scene = group_scene(next_seed(), difficulty_, draws_.between(2, kMaxObjects), {&wanted, 1});
    const Object& object = scene.objects.front();
    if (cell_.task == Task::kPosition) {
      add(scene, ask_place_of(name_of(object.shape)), name_of(place), cover_of(0));
      item_.choices = as_choices(kPlaceNames);
    } else if (cell_.task == Task::kColourOf) {
      add(scene, ask_colour_of(name_of(object.shape)), name_of(colour), cover_of(0));
      item_.choices = as_choices(kColourNames);
    } else {
      add(scene, ask_shape_of(name_of(object.colour)), name_of(shape), cover_of(0));
      item_.choices = as_choices(kShapeNames);
    }
  }

  // `count` different values below `limit`, `first` at place `at`.
  std::vector<int> different(int count, int limit, int first, int at) {
    std::vector<int> values;
    for (int v = 0; v < limit; ++v)
      if (v != first) values.push_back(v);
    draws_.shuffle(values);
    values.resize(static_cast<size_t>(count));
    values[static_cast<size_t>(at)] = first;
    return values;
  }

  // Made-up words for the classes of this cell.
  std::vector<std::string> draw_words() {
    std::vector<std::string> words;
    for (int w = 0; w < kNumMadeUpWords; ++w)
      if (is_held_out(cell_.attribute, w) == cell_.has_unseen_words)
        words.emplace_back(kMadeUpWords[static_cast<size_t>(w)]);
    draws_.shuffle(words);
    words.resize(static_cast<size_t>(cell_.classes));
    return words;
  }

  // The classes of the examples in order; classes are numbered as they first appear.
  std::vector<int> draw_order() {
    std::vector<int> slots;
    for (int i = 0; i < cell_.classes * cell_.shots; ++i) slots.push_back(i % cell_.classes);
    draws_.shuffle(slots);
    std::vector<int> number(static_cast<size_t>(cell_.classes), -1);
    int next = 0;
    for (int& slot : slots) {
      int& seen = number[static_cast<size_t>(slot)];
      if (seen < 0) seen = next++;
      slot = seen;
    }
    return slots;
  }

  void add_examples(const std::vector<int>& values) {
    for (const int c : draw_order())
      add(solo_of(cell_.attribute, values[static_cast<size_t>(c)]), ask_name(cell_.attribute),
          words_[static_cast<size_t>(c)], shown_by(cell_.attribute));
  }

  void bind() {
    const int asked = balanced(cell_.classes);
    const int value = balanced(kNumClasses, cell_.classes);
    const std::vector<int> values = different(cell_.classes, kNumClasses, value, asked);
    words_ = draw_words();
    add_examples(values);
    add(solo_of(cell_.attribute, value), ask_name(cell_.attribute), words_[static_cast<size_t>(asked)],
        shown_by(cell_.attribute));
    item_.choices = words_;
  }

  // Three objects: the two that the examples named and another.
  void define() {
    const auto asked = static_cast<size_t>(balanced(cell_.classes));
    const int answer = balanced(cell_.task == Task::kDefinedPosition ? kNumPlaces : kNumClasses, cell_.classes);
    const std::vector<int> values = different(cell_.classes, kNumClasses, draws_.between(0, kNumClasses - 1), 0);
    words_ = draw_words();
    add_examples(values);
    std::vector<WantedObject> wanted(values.size());
    for (size_t i = 0; i < values.size(); ++i)
      if (cell_.attribute == Attribute::kShape) {
        wanted[i].shape = static_cast<Shape>(values[i]);
      } else {
        wanted[i].colour = static_cast<Colour>(values[i]);
      }
    if (cell_.task == Task::kDefinedColour) wanted[asked].colour = static_cast<Colour>(answer);
    if (cell_.task == Task::kDefinedShape) wanted[asked].shape = static_cast<Shape>(answer);
    if (cell_.task == Task::kDefinedPosition) wanted[asked].place = static_cast<Place>(answer);
    const Scene scene = group_scene(next_seed(), difficulty_, 3, wanted);
    for (size_t i = 0; i < wanted.size(); ++i) item_.choices.emplace_back(answer_about(scene.objects[i]));
    add(scene, question_about(words_[asked]), item_.choices[asked], cover_of(asked));
  }

  std::string question_about(const std::string& word) const {
    if (cell_.task == Task::kDefinedColour) return ask_colour_of(word);
    if (cell_.task == Task::kDefinedShape) return ask_shape_of(word);
    return ask_place_of(word);
  }
  std::string_view answer_about(const Object& object) const {
    if (cell_.task == Task::kDefinedColour) return name_of(object.colour);
    if (cell_.task == Task::kDefinedShape) return name_of(object.shape);
    return name_of(object.place());
  }

  const Cell& cell_;
  Split split_;
  uint64_t index_;
  Difficulty difficulty_;
  Draws draws_;      // what is asked
  uint64_t scenes_;  // the stream of its scenes' seeds
  std::vector<std::string> words_;
  Item item_;
};

// One patch of each thing in turn, until all are taken.
void deal_out(const std::vector<std::vector<int>>& things, std::vector<int>& order) {
  for (size_t round = 0; std::ranges::any_of(things, [&](const auto& t) { return round < t.size(); }); ++round)
    for (const std::vector<int>& thing : things)
      if (round < thing.size()) order.push_back(thing[round]);
}

// The examples' words move on by a number of classes that is as often 0 as any other.
void shuffle_words(const Cell& cell, Item& item, uint64_t index) {
  std::vector<std::string> words;
  for (size_t i = 0; i + 1 < item.turns.size(); ++i)
    if (std::ranges::find(words, item.turns[i].answer) == words.end()) words.push_back(item.turns[i].answer);
  const size_t step = Draws(index ^ hash_of(cell.name)).below(words.size());
  for (size_t i = 0; i + 1 < item.turns.size(); ++i) {
    const auto at = static_cast<size_t>(std::ranges::find(words, item.turns[i].answer) - words.begin());
    item.turns[i].answer = words[(at + step) % words.size()];
  }
}

void shuffle_traits(const Cell& cell, Item& item, uint64_t index) {
  const size_t step = Draws(index ^ hash_of(cell.name)).below(kNumTraits);
  const auto trait = static_cast<Trait>((static_cast<size_t>(cell.trait) + step) % kNumTraits);
  for (size_t i = 0; i + 1 < item.turns.size(); ++i) {
    Turn& turn = item.turns[i];
    turn.answer = trait_of(turn.scene.objects[turn.asked->object], trait);
  }
}

bool needs_earlier_screens(const Cell& cell) {
  return cell.task == Task::kScreens && cell.screen_ask != ScreenAsk::kPressed && cell.screen_ask != ScreenAsk::kNow;
}

}  // namespace

Draws item_draws(const Cell& cell, Split split, uint64_t seed, uint64_t index) {
  const uint64_t list = hash_of(cell.full_name()) ^ Draws(2 * seed + static_cast<uint64_t>(split)).next();
  return Draws(Draws::of_stream(list, index).next());
}

std::vector<int> by_need(std::span<const Cover> covers, const Turn& turn) {
  std::vector<Cover> first = turn.needed, others;
  if (turn.asked) (first.empty() ? first : others).push_back(*turn.asked);
  others.insert(others.end(), {{Cover::By::kSpot}, {Cover::By::kPointer}});
  for (size_t i = 0; i < turn.scene.objects.size(); ++i)
    others.push_back({Cover::By::kObject, static_cast<uint8_t>(i)});
  const auto patches_of = [&](const std::vector<Cover>& things) {
    std::vector<std::vector<int>> patches;
    for (const Cover thing : things) patches.push_back(patches_showing(covers, thing));
    return patches;
  };
  std::vector<int> all;
  deal_out(patches_of(first), all);
  deal_out(patches_of(others), all);
  for (const Cover::By by : {Cover::By::kDistractor, Cover::By::kClutter, Cover::By::kWindow, Cover::By::kBackground})
    std::ranges::copy(patches_showing(covers, {by}), std::back_inserter(all));
  std::vector<int> order;
  std::vector<char> is_taken(covers.size(), 0);
  for (const int patch : all)
    if (std::exchange(is_taken[static_cast<size_t>(patch)], 1) == 0) order.push_back(patch);
  return order;
}

Image picture_of(const Turn& turn, int side) {
  if (!turn.is_blank) return draw(turn.scene, side).image;
  return {side, side, std::vector<uint8_t>(static_cast<size_t>(side) * static_cast<size_t>(side) * 3, 128)};
}

std::span<const Cell> all_cells() {
  static const std::vector<Cell> cells = make_cells();
  return cells;
}

std::span<const Cell> crowded_cells() {
  static const std::vector<Cell> cells = make_crowded_cells();
  return cells;
}

std::vector<Cell> select_cells(std::span<const std::string> names) {
  if (names.empty()) return {all_cells().begin(), all_cells().end()};
  std::vector<Cell> cells(all_cells().begin(), all_cells().end());
  cells.insert(cells.end(), crowded_cells().begin(), crowded_cells().end());
  const auto matches = [](const Cell& cell, const std::string& name) {
    return name == cell.suite || name == cell.full_name();
  };
  for (const std::string& name : names)
    if (std::ranges::none_of(cells, [&](const Cell& cell) { return matches(cell, name); })) {
      std::string known;
      for (const std::string_view suite : kSuites) known += (known.empty() ? "" : ", ") + std::string(suite);
      for (const std::string_view suite : kCrowdedSuites) known += ", " + std::string(suite);
      throw Error("suite \"" + name + "\": expected one of " + known + ", or a cell of one, such as bind/shape-2x1");
    }
  std::erase_if(cells, [&](const Cell& cell) {
    return std::ranges::none_of(names, [&](const std::string& name) { return matches(cell, name); });
  });
  return cells;
}

Item make_item(const Cell& cell, Split split, uint64_t seed, uint64_t index, const Difficulty& difficulty) {
  if (is_crowded(cell)) return make_crowded_item(cell, split, seed, index, difficulty);
  return ItemMaker(cell, split, seed, index, difficulty).make();
}

std::string_view name_of(Control control) {
  constexpr std::array<std::string_view, 3> kNames = {"no-images", "shuffled-words", "no-examples"};
  return kNames[static_cast<size_t>(control)];
}

bool applies(Control control, const Cell& cell) {
  if (control == Control::kNoImages || cell.classes > 0) return true;
  return control == Control::kNoExamples && needs_earlier_screens(cell);
}

double chance_of(const Cell& cell, Control control) {
  const bool takes_trait = cell.task == Task::kInContext && control != Control::kNoImages;
  return takes_trait ? 1.0 / kNumTraits : cell.chance;
}

Item make_control(const Cell& cell, Item item, Control control, uint64_t index) {
  if (control == Control::kNoImages)
    for (Turn& turn : item.turns) turn.is_blank = true;
  if (control == Control::kShuffledWords && cell.task == Task::kInContext) {
    shuffle_traits(cell, item, index);
  } else if (control == Control::kShuffledWords) {
    shuffle_words(cell, item, index);
  }
  if (control == Control::kNoExamples) item.turns.erase(item.turns.begin(), item.turns.end() - 1);
  return item;
}

ItemDigest::ItemDigest() : hash_(std::make_unique<Sha256>()) {}
ItemDigest::~ItemDigest() = default;

void ItemDigest::add(const Item& item, int side) {
  for (const Turn& turn : item.turns) {
    for (const std::string* text : {&turn.question, &turn.answer}) {
      hash_->add(*text);
      hash_->add("\n");
    }
    hash_->add(picture_of(turn, side).rgb);
  }
  for (const std::string& choice : item.choices) hash_->add(choice + "\n");
}

std::string ItemDigest::finish() {
  return hash_->hex();
}

}  // namespace espalier::synth
