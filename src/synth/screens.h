// SPDX-License-Identifier: Apache-2.0
// Screens: two windows with three buttons each on a desktop, a pointer on one of the buttons. Six labels, the shapes,
// one a button; buttons have colours, and from screen to screen some of them change. A sequence is four screens of one
// desktop; nothing else moves in it but the pointer. Not here: which question an item asks (crowded_items.h).
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "synth/draws.h"
#include "synth/scene.h"
#include "synth/wording.h"

namespace espalier::synth {

inline constexpr int kNumButtons = 6, kNumScreens = 4;
static_assert(kNumButtons == kNumShapes, "every label once");

struct ScreenState {
  std::array<Colour, kNumButtons> colours{};  // by button
  int pressed = 0;                            // the button under the pointer
};

enum class ScreenAsk : uint8_t {
  kPressed,    // what is pressed?                            the label under the pointer
  kNow,        // what colour is the star?                    on the last screen
  kChanged,    // what changed?                               the only button that did, since the screen before
  kUnchanged,  // what did not change?                        the only button that did not
  kBefore,     // what colour was the star three screens ago? on the first screen
};

struct ScreenSequence {
  uint64_t desktop = 0;                     // seed of what all screens share
  std::array<Shape, kNumButtons> labels{};  // by button
  std::vector<ScreenState> screens;         // kNumScreens
  int asked = 0;                            // the button that the question is about or whose label answers it

  int button_of(Shape label) const;
};

// A sequence to ask `ask` about. `answer` is the class of the right answer: a colour of kNow and kBefore, a label of
// the others. For kChanged exactly one button changes between two screens, for kUnchanged all but one, each time
// another; for the rest every button's colour is drawn anew on every screen.
ScreenSequence draw_screens(Draws& draws, ScreenAsk ask, int answer);

// Screen `number` of the sequence; Scene::objects are the buttons. `seed`: of its pixel noise. With
// Difficulty::clutter the desktop is strokes all over, with Difficulty::distractor each window has a grey bar without a
// label.
Scene screen_scene(uint64_t seed, const Difficulty& difficulty, const ScreenSequence& sequence, int number);

std::string text_of(const ScreenSequence& sequence, ScreenAsk ask);
std::string_view answer_to(const ScreenSequence& sequence, ScreenAsk ask);

// All that the answer to `ask` about the whole sequence is read from on screen `number`.
std::vector<Cover> needed_on(const ScreenSequence& sequence, ScreenAsk ask, int number);

}  // namespace espalier::synth
