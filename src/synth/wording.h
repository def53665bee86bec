// SPDX-License-Identifier: Apache-2.0
// Every word of the synthetic benchmark: names, made-up words, questions, and how turns become text. Models are trained
// on exactly this wording and their tokenizers are made from it, so a change here asks for a new model; what the demo
// model knows stands apart from the words of crowded scenes and screens (Words).
// Not here: which scene goes with which question (items.h).
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace espalier::synth {

enum class Shape : uint8_t { kCircle, kSquare, kTriangle, kStar, kCross, kRing };
enum class Colour : uint8_t { kRed, kGreen, kBlue, kYellow, kPurple, kOrange };
enum class Place : uint8_t { kTopLeft, kTopRight, kBottomLeft, kBottomRight };
// What a made-up word can stand for: the shape or the colour of the object, or the colour of the small spot beside it.
enum class Attribute : uint8_t { kShape, kColour, kSpot };

inline constexpr int kNumShapes = 6, kNumColours = 6, kNumPlaces = 4, kMaxObjects = 4, kNumAttributes = 3;
inline constexpr int kNumClasses = 6;  // of every attribute

inline constexpr std::array<std::string_view, kNumShapes> kShapeNames = {"circle", "square", "triangle",
                                                                         "star",   "cross",  "ring"};
inline constexpr std::array<std::string_view, kNumColours> kColourNames = {"red",    "green",  "blue",
                                                                           "yellow", "purple", "orange"};
inline constexpr std::array<std::string_view, kNumPlaces> kPlaceNames = {"top-left", "top-right", "bottom-left",
                                                                         "bottom-right"};
inline constexpr std::array<std::string_view, kMaxObjects> kNumberNames = {"one", "two", "three", "four"};
inline constexpr std::array<std::string_view, kNumAttributes> kAttributeNames = {"shape", "colour", "spot"};

// Words without a meaning of their own: only the examples of a prompt define them.
inline constexpr int kNumMadeUpWords = 40;
inline constexpr std::array<std::string_view, kNumMadeUpWords> kMadeUpWords = {
    "dax", "wug", "fep", "zup", "kib", "lum", "mib", "nef", "pim", "rix", "sab", "tiv", "vab", "gip",
    "bem", "hux", "jop", "yat", "dop", "wep", "fim", "zid", "kep", "lod", "mov", "nub", "pog", "rud",
    "sem", "tog", "vem", "gav", "bok", "hab", "jad", "yim", "dir", "wof", "fot", "zek"};

// In training, words 0-3 never name shapes, 4-7 never colours, 8-11 never spots: the test with unseen words. Whole
// attributes are held out, not pairs of word and class, because a model learns "this word is never that class".
inline constexpr int kHeldOutPerAttribute = 4;
constexpr bool is_held_out(Attribute attribute, int word) {
  return word / kHeldOutPerAttribute == static_cast<int>(attribute);
}

constexpr std::string_view name_of(Shape shape) {
  return kShapeNames[static_cast<size_t>(shape)];
}
constexpr std::string_view name_of(Colour colour) {
  return kColourNames[static_cast<size_t>(colour)];
}
constexpr std::string_view name_of(Place place) {
  return kPlaceNames[static_cast<size_t>(place)];
}
constexpr std::string_view name_of(Attribute attribute) {
  return kAttributeNames[static_cast<size_t>(attribute)];
}
constexpr std::string_view name_of_count(int objects) {
  return kNumberNames[static_cast<size_t>(objects - 1)];
}

// ---- questions ----
// A noun or adjective is a real name or, once examples have defined it, a made-up word.

std::string ask(Attribute attribute);                  // "what shape?"   about a scene with one object
std::string ask_name(Attribute attribute);             // "name the shape"   answered with a made-up word
std::string ask_count();                               // "how many objects?"
std::string ask_colour_of(std::string_view noun);      // "what colour is the star?"
std::string ask_shape_of(std::string_view adjective);  // "what shape is red?"
std::string ask_place_of(std::string_view noun);       // "where is the star?"

// Of crowded scenes. A kind is a colour and a shape, "red ring".
std::string ask_spot_on(std::string_view kind);          // "what spot is on the red ring?"
std::string ask_what_has_spot(std::string_view colour);  // "what has the red spot?"
// Of screens. A label is the shape on a button.
std::string ask_pressed();                              // "what is pressed?"
std::string ask_changed();                              // "what changed?"
std::string ask_unchanged();                            // "what did not change?"
std::string ask_colour_before(std::string_view label);  // "what colour was the star three screens ago?"

// ---- turns as text (what the chat template makes of them; `<s>` comes from the tokenizer) ----

std::string open_turn(std::string_view question);  // "USER: <image>\nwhat shape? ASSISTANT:"
std::string close_turn(std::string_view answer);   // " star</s>"

// Which words a tokenizer knows.
enum class Words : uint8_t {
  kDemo,
  kCrowded
};  // the latter: those of the demo model, then those of crowds and screens

// Every word that an image turn can hold, each once: the tokenizer makes each one token.
std::span<const std::string_view> question_openers();  // behind the image's newline: "what", …
// Behind a space: names, made-up words, the rest of the questions.
std::span<const std::string_view> other_words(Words words = Words::kDemo);

}  // namespace espalier::synth
