// SPDX-License-Identifier: Apache-2.0
#include "synth/wording.h"

#include <vector>

namespace espalier::synth {

namespace {

constexpr std::array<std::string_view, 4> kOpeners = {"what", "name", "how", "where"};
constexpr std::array<std::string_view, 7> kInnerWords = {"the", "is", "many", "objects", "shape", "colour", "spot"};

std::vector<std::string_view> make_other_words() {
  std::vector<std::string_view> words(kInnerWords.begin(), kInnerWords.end());
  const auto add = [&](std::span<const std::string_view> more) { words.insert(words.end(), more.begin(), more.end()); };
  add(kShapeNames);
  add(kColourNames);
  add(kNumberNames);
  add(kPlaceNames);
  add(kMadeUpWords);
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

std::string open_turn(std::string_view question) {
  return join({"USER: <image>\n", question, " ASSISTANT:"});
}
std::string close_turn(std::string_view answer) {
  return join({" ", answer, "</s>"});
}

std::span<const std::string_view> question_openers() {
  return kOpeners;
}
std::span<const std::string_view> other_words() {
  static const std::vector<std::string_view> words = make_other_words();
  return words;
}

}  // namespace espalier::synth
