// SPDX-License-Identifier: Apache-2.0
#include "synth/wording.h"

#include <vector>

namespace espalier::synth {

namespace {

constexpr std::array<std::string_view, 4> kOpeners = {"what", "name", "how", "where"};
constexpr std::array<std::string_view, 7> kInnerWords = {"the", "is", "many", "objects", "shape", "colour", "spot"};
constexpr std::array<std::string_view, 10> kCrowdedWords = {"on",  "has",    "pressed", "changed", "did",
                                                            "not", "change", "was",     "screens", "ago"};

std::vector<std::string_view> make_other_words(Words set) {
  std::vector<std::string_view> words(kInnerWords.begin(), kInnerWords.end());
  const auto add = [&](std::span<const std::string_view> more) { words.insert(words.end(), more.begin(), more.end()); };
  add(kShapeNames);
  add(kColourNames);
  add(kNumberNames);
  add(kPlaceNames);
  add(kMadeUpWords);
  if (set == Words::kCrowded) add(kCrowdedWords);
  return words;
}

std::string join(std::initializer_list<std::string_view> parts) {
  std::string text;
  for (const std::string_view part : parts) text += part;
  return text;
}

}  // namespace

std::string ask(Attribute attribute) {
  return join({"what ", name_of(attribute), "?"});
}
std::string ask_name(Attribute attribute) {
  return join({"name the ", name_of(attribute)});
}
std::string ask_count() {
  return "how many objects?";
}
std::string ask_colour_of(std::string_view noun) {
  return join({"what colour is the ", noun, "?"});
}
std::string ask_shape_of(std::string_view adjective) {
  return join({"what shape is ", adjective, "?"});
}
std::string ask_place_of(std::string_view noun) {
  return join({"where is the ", noun, "?"});
}

std::string ask_spot_on(std::string_view kind) {
  return join({"what spot is on the ", kind, "?"});
}
std::string ask_what_has_spot(std::string_view colour) {
  return join({"what has the ", colour, " spot?"});
}
std::string ask_pressed() {
  return "what is pressed?";
}
std::string ask_changed() {
  return "what changed?";
}
std::string ask_unchanged() {
  return "what did not change?";
}
std::string ask_colour_before(std::string_view label) {
  return join({"what colour was the ", label, " three screens ago?"});
}

std::string open_turn(std::string_view question) {
  return join({"USER: <image>\n", question, " ASSISTANT:"});
}
std::string close_turn(std::string_view answer) {
  return join({" ", answer, "</s>"});
}

std::span<const std::string_view> question_openers() {
  return kOpeners;
}
std::span<const std::string_view> other_words(Words words) {
  static const std::vector<std::string_view> demo = make_other_words(Words::kDemo);
  static const std::vector<std::string_view> crowded = make_other_words(Words::kCrowded);
  return words == Words::kDemo ? demo : crowded;
}

}  // namespace espalier::synth
