// SPDX-License-Identifier: Apache-2.0
#include "synth/screens.h"

#include <algorithm>
#include <numeric>

#include "synth/scene_parts.h"

namespace espalier::synth {

namespace {

constexpr int kLast = kNumScreens - 1;
constexpr int kButtonsInWindow = kNumButtons / 2;
constexpr int kTitle = 4 * kUnit, kFrame = kUnit / 2;  // heights of a title bar, width of a window's edge
constexpr int kButtonWidth = 14 * kUnit, kButtonHeight = 19 * kUnit / 2;
constexpr int kLabelRadius = 15 * kUnit / 4, kPointerRadius = 5 * kUnit / 2;

struct Area {
  int x, y, width, height;
};

Panel panel(const Area& a, Rgb paint) {
  return {{a.x, a.y}, a.width, a.height, paint};
}

// Where the parts of a desktop are: a function of its seed.
struct Desktop {
  Background background;
  std::vector<Stroke> strokes;
  std::vector<Panel> windows;
  std::array<Area, kNumButtons> buttons;
  std::vector<Panel> bars;
  Rgb label;
};

// A window somewhere in `room`, with three cells for buttons beside or below each other.
void add_window(Draws& draws, const Area& room, bool is_tall, size_t first, Desktop& to) {
  const int grey = draws.between(150, 225), dark = draws.between(30, 90);
  Area w;
  w.width = room.width - draws.between(2 * kUnit, 3 * kUnit);
  w.height = room.height - draws.between(2 * kUnit, 3 * kUnit);
  w.x = room.x + draws.between(0, room.width - w.width);
  w.y = room.y + draws.between(0, room.height - w.height);
  to.windows.push_back(panel(w, jittered(draws, {dark, dark, dark}, 12)));  // frame and title bar
  const Area body{w.x + kFrame, w.y + kTitle, w.width - 2 * kFrame, w.height - kTitle - kFrame};
  to.windows.push_back(panel(body, jittered(draws, {grey, grey, grey}, 12)));
  const Area cell = is_tall ? Area{body.x, body.y, body.width, body.height / kButtonsInWindow}
                            : Area{body.x, body.y, body.width / kButtonsInWindow, body.height};
  const int bar_height = 2 * kUnit;
  for (int i = 0; i < kButtonsInWindow; ++i) {
    Area& b = to.buttons[first + static_cast<size_t>(i)];
    b.width = kButtonWidth, b.height = kButtonHeight;
    b.x = cell.x + (is_tall ? 0 : i * cell.width) + draws.between(0, cell.width - b.width);
    b.y = cell.y + (is_tall ? i * cell.height : 0) + draws.between(0, cell.height - b.height - bar_height);
  }
  const int shade = grey - draws.between(60, 90);
  to.bars.push_back(panel({body.x, body.y + body.height - bar_height, body.width / 2, bar_height},
                          jittered(draws, {shade, shade, shade}, 6)));
}

Desktop draw_desktop(uint64_t seed) {
  Draws draws(seed);
  Desktop desktop;
  desktop.background = draw_background(draws);
  desktop.strokes = draw_strokes(draws, desktop.background, kBusyGround);
  const bool is_tall = draws.below(2) != 0;  // windows side by side, else one above the other
  constexpr int kHalf = kExtent / 2;
  for (int i = 0; i < 2; ++i) {
    const Area room = is_tall ? Area{i * kHalf, 0, kHalf, kExtent} : Area{0, i * kHalf, kExtent, kHalf};
    add_window(draws, room, is_tall, static_cast<size_t>(i) * kButtonsInWindow, desktop);
  }
  const int dark = draws.between(15, 40);
  desktop.label = {dark, dark, dark};
  return desktop;
}

// A button that keeps its colour keeps its shade.
Rgb shade_of(const ScreenSequence& sequence, int button, Colour colour) {
  const int stream = 1 + button * kNumColours + static_cast<int>(colour);
  Draws draws(SplitMix64::of_stream(sequence.desktop, static_cast<uint64_t>(stream)).next());
  return paint_of(draws, colour);
}

Colour other_colour(Draws& draws, Colour colour) {
  return static_cast<Colour>((static_cast<int>(colour) + draws.between(1, kNumColours - 1)) % kNumColours);
}

Colour random_colour(Draws& draws) {
  return static_cast<Colour>(draws.index(kNumColours));
}

// The buttons that are singled out at each step from screen to screen: all different, the last one `asked`.
std::vector<int> different_buttons(Draws& draws, int asked) {
  std::vector<int> buttons(kNumButtons);
  std::iota(buttons.begin(), buttons.end(), 0);
  std::erase(buttons, asked);
  draws.shuffle(buttons);
  buttons.resize(kLast - 1);
  buttons.push_back(asked);
  return buttons;
}

std::vector<Cover> all_buttons(int first) {
  std::vector<Cover> buttons;
  for (int i = 0; i < kNumButtons; ++i)
    buttons.push_back({Cover::By::kObject, static_cast<uint8_t>((first + i) % kNumButtons)});
  return buttons;
}

}  // namespace

int ScreenSequence::button_of(Shape label) const {
  return static_cast<int>(std::ranges::find(labels, label) - labels.begin());
}

ScreenSequence draw_screens(Draws& draws, ScreenAsk ask, int answer) {
  ScreenSequence sequence;
  sequence.desktop = draws.next();
  for (int i = 0; i < kNumButtons; ++i) sequence.labels[static_cast<size_t>(i)] = static_cast<Shape>(i);
  draws.shuffle(sequence.labels);
  const bool is_about_colour = ask == ScreenAsk::kNow || ask == ScreenAsk::kBefore;
  sequence.asked = is_about_colour ? draws.index(kNumButtons) : sequence.button_of(static_cast<Shape>(answer));
  const std::vector<int> singled_out = different_buttons(draws, sequence.asked);
  for (int s = 0; s < kNumScreens; ++s) {
    ScreenState state;
    state.pressed = draws.index(kNumButtons);
    for (int b = 0; b < kNumButtons; ++b) {
      Colour& colour = state.colours[static_cast<size_t>(b)];
      const bool is_first = s == 0;
      const bool is_singled_out = !is_first && singled_out[static_cast<size_t>(s - 1)] == b;
      const bool keeps = !is_first && ((ask == ScreenAsk::kChanged && !is_singled_out) ||
                                       (ask == ScreenAsk::kUnchanged && is_singled_out));
      const bool differs = !is_first && (ask == ScreenAsk::kChanged || ask == ScreenAsk::kUnchanged);
      const Colour before = is_first ? Colour{} : sequence.screens.back().colours[static_cast<size_t>(b)];
      colour = keeps ? before : differs ? other_colour(draws, before) : random_colour(draws);
    }
    sequence.screens.push_back(state);
  }
  if (ask == ScreenAsk::kPressed) sequence.screens.back().pressed = sequence.asked;
  if (is_about_colour)
    sequence.screens[ask == ScreenAsk::kNow ? kLast : 0].colours[static_cast<size_t>(sequence.asked)] =
        static_cast<Colour>(answer);
  return sequence;
}

Scene screen_scene(uint64_t seed, const Difficulty& difficulty, const ScreenSequence& sequence, int number) {
  const Desktop desktop = draw_desktop(sequence.desktop);
  const ScreenState& state = sequence.screens[static_cast<size_t>(number)];
  Scene scene{
      .seed = seed, .background = desktop.background, .clutter = {}, .distractor = {}, .objects = {}, .spot = {}};
  if (difficulty.clutter) scene.clutter = desktop.strokes;
  if (difficulty.distractor) scene.bars = desktop.bars;
  Screen& screen = scene.screen.emplace();
  screen.windows = desktop.windows;
  for (int b = 0; b < kNumButtons; ++b) {
    const auto at = static_cast<size_t>(b);
    const Area& area = desktop.buttons[at];
    screen.faces.push_back(panel(area, shade_of(sequence, b, state.colours[at])));
    Object label;
    label.shape = sequence.labels[at];
    label.colour = state.colours[at];
    label.radius = kLabelRadius;
    label.centre = {area.x + kLabelRadius + kUnit, area.y + area.height / 2};
    label.paint = desktop.label;
    scene.objects.push_back(label);
  }
  const Area& pressed = desktop.buttons[static_cast<size_t>(state.pressed)];
  screen.pressed = static_cast<uint8_t>(state.pressed);
  screen.pointer.shape = Shape::kTriangle;
  screen.pointer.radius = kPointerRadius;
  screen.pointer.centre = {pressed.x + pressed.width - 11 * kUnit / 4, pressed.y + pressed.height / 2};
  screen.pointer.paint = {250, 250, 250};
  return scene;
}

std::string text_of(const ScreenSequence& sequence, ScreenAsk ask) {
  const std::string_view label = name_of(sequence.labels[static_cast<size_t>(sequence.asked)]);
  switch (ask) {
    case ScreenAsk::kPressed:
      return ask_pressed();
    case ScreenAsk::kNow:
      return ask_colour_of(label);
    case ScreenAsk::kChanged:
      return ask_changed();
    case ScreenAsk::kUnchanged:
      return ask_unchanged();
    case ScreenAsk::kBefore:
      return ask_colour_before(label);
  }
  return {};
}

std::string_view answer_to(const ScreenSequence& sequence, ScreenAsk ask) {
  const auto asked = static_cast<size_t>(sequence.asked);
  if (ask == ScreenAsk::kNow) return name_of(sequence.screens.back().colours[asked]);
  if (ask == ScreenAsk::kBefore) return name_of(sequence.screens.front().colours[asked]);
  return name_of(sequence.labels[asked]);
}

std::vector<Cover> needed_on(const ScreenSequence& sequence, ScreenAsk ask, int number) {
  const Cover button{Cover::By::kObject, static_cast<uint8_t>(sequence.asked)};
  const bool is_last = number == kLast, is_first = number == 0, is_compared = number >= kLast - 1;
  switch (ask) {
    case ScreenAsk::kPressed:
      return is_last ? std::vector<Cover>{button, {Cover::By::kPointer}} : std::vector<Cover>{};
    case ScreenAsk::kNow:
      return is_last ? std::vector<Cover>{button} : std::vector<Cover>{};
    case ScreenAsk::kChanged:
      return is_compared ? std::vector<Cover>{button} : std::vector<Cover>{};
    case ScreenAsk::kUnchanged:  // the others show that they are not it
      return is_compared ? all_buttons(sequence.asked) : std::vector<Cover>{};
    case ScreenAsk::kBefore:
      return is_first ? std::vector<Cover>{button} : std::vector<Cover>{};
  }
  return {};
}

}  // namespace espalier::synth
