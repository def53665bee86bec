// SPDX-License-Identifier: Apache-2.0
#include "training/crowd_task.h"

#include <torch/types.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "synth/items.h"
#include "synth/screens.h"
#include "training/patch_labels.h"
#include "training/tower_task.h"

namespace espalier {

namespace {

using synth::Cover;
using synth::CrowdAsk;
using synth::CrowdQuestion;
using synth::Member;
using synth::ScreenAsk;
using synth::Trait;

// CrowdAsk but kWithSpot, Trait and ScreenAsk in their order.
constexpr int kFirstTrait = 4, kFirstScreen = kFirstTrait + synth::kNumTraits;
constexpr int kPatchTopic = kFirstScreen + static_cast<int>(ScreenAsk::kBefore) + 1;

constexpr int64_t kPicturesAtOnce = 16;  // in the tower

class CrowdTask : public LanguageTask {
 public:
  CrowdTask(const LlavaConfig& config, const TurnTokens& tokens, const ImageProcessor& processor,
            const Parameters& parameters, const LanguageTaskOptions& language, const CrowdTaskOptions& options,
            uint64_t seed)
      : LanguageTask(config, language), tokens_(tokens), processor_(processor), options_(options), seed_(seed) {
    if (options.features == PatchFeatures::kLabels) return;
    const torch::NoGradGuard no_gradients;
    tower_ = bind_parameters(config, parameters, language.dtype).vision;
  }

  std::vector<std::string> topics() const override { return crowd_topics(); }

  TrainingBatch batch(int64_t number, bool is_evaluation) const override {
    Draft draft(Draw(seed_, is_evaluation ? "crowds evaluation" : "crowds training", number),
                BatchBuilder(tokens_, config().vision.num_patches()));
    for (int64_t s = 0; s < options_.sequences; ++s) {
      const double kind = static_cast<double>(draft.draw.below(1000)) / 1000;
      draft.builder.begin_sequence();
      if (kind < options_.in_context) {
        add_in_context(draft);
      } else if (kind < options_.in_context + options_.screens) {
        add_screens(draft);
      } else {
        add_questions(draft);
      }
    }
    TrainingBatch batch = draft.builder.finish();
    batch.features = features_of(draft).index_select(0, torch::tensor(draft.builder.feature_rows(), torch::kLong));
    return batch;
  }

 private:
  struct Draft {
    Draft(Draw d, BatchBuilder b) : draw(d), builder(std::move(b)) {}

    Draw draw;
    BatchBuilder builder;
    std::vector<synth::Drawing> drawings;         // of all pictures so far
    std::vector<std::vector<PatchLabel>> labels;  // likewise
  };

  struct Question {
    std::string text, answer;
    int topic = kNotCounted;
    bool is_scored = true;
  };

  // A seed of the training split that no test item has.
  static uint64_t scene_seed(Draft& draft) {
    const auto stream = static_cast<uint64_t>(draft.draw.below(INT64_MAX));
    return synth::scene_seed(synth::Split::kTrain, stream, draft.drawings.size());
  }

  // One turn with the picture, and one without it for each question after the first. `says`: what the patches of an
  // object are trained to say themselves, by its shape; empty: nothing.
  void add_picture(Draft& draft, const synth::Scene& scene, std::vector<Cover> needed,
                   const std::vector<Question>& questions, const std::vector<int64_t>& says = {}) const {
    const int grid = static_cast<int>(config().vision.grid());
    const auto patches = static_cast<int64_t>(grid) * grid;
    const auto first = static_cast<int64_t>(draft.drawings.size()) * patches;
    draft.drawings.push_back(synth::draw(scene, static_cast<int>(config().vision.image_size)));
    const std::vector<Cover> covers = synth::patch_covers(draft.drawings.back(), grid, grid);
    draft.labels.push_back(patch_labels(scene, covers));
    std::vector<int> places(covers.size());
    std::iota(places.begin(), places.end(), 0);
    if (options_.shown > 0) {
      const synth::Turn turn{.scene = scene, .question = {}, .answer = {}, .asked = {}, .needed = std::move(needed)};
      places = synth::by_need(covers, turn);
      places.resize(std::min(places.size(), static_cast<size_t>(options_.shown)));
      std::ranges::sort(places);
    }
    std::vector<ImageSlot> slots;
    for (const int p : places) {
      const int64_t shape = draft.labels.back()[static_cast<size_t>(p)].shape;
      const bool is_silent = says.empty() || shape == PatchLabel::kNothing;
      slots.push_back({.place = p, .feature = first + p, .says = is_silent ? -1 : says[static_cast<size_t>(shape)]});
    }
    for (const Question& q : questions) {
      draft.builder.add_turn(q.text, q.answer, slots, q.is_scored, q.topic, kPatchTopic);
      slots.clear();
    }
  }

  // A crowd that at least one of these can be asked about, and what can be, by kind.
  struct Crowd {
    std::vector<Member> members;
    std::vector<std::vector<CrowdQuestion>> possible;
  };
  Crowd draw_crowd(synth::Draws& draws, const std::vector<CrowdAsk>& asks) const {
    for (;;) {
      Crowd crowd{synth::draw_members(draws, draws.between(options_.fewest, options_.most)), {}};
      for (const CrowdAsk ask : asks)
        if (auto questions = synth::questions_about(crowd.members, ask); !questions.empty())
          crowd.possible.push_back(std::move(questions));
      if (!crowd.possible.empty()) return crowd;
    }
  }

  void add_questions(Draft& draft) const {
    for (int64_t p = 0; p < options_.pictures; ++p) {
      synth::Draws draws(scene_seed(draft));
      const auto [members, possible] = draw_crowd(draws, options_.asks);
      std::vector<Question> questions;
      std::vector<Cover> needed;
      for (int64_t i = 0; i < options_.questions; ++i) {
        const CrowdQuestion& q = draft.draw.one_of(draft.draw.one_of(possible));
        questions.push_back({.text = synth::text_of(members, q),
                             .answer = std::string(synth::answer_to(members, q)),
                             .topic = static_cast<int>(q.ask)});
        for (const Cover thing : synth::needed_by(q)) needed.push_back(thing);
      }
      add_picture(draft, synth::crowded_scene(draws.next() >> 1, options_.difficulty, members), std::move(needed),
                  questions);
    }
  }

  // The first answer shows which trait is meant; from the second on it can be known.
  void add_in_context(Draft& draft) const {
    const auto trait = static_cast<Trait>(draft.draw.below(synth::kNumTraits));
    const int64_t questions_each = is_like_an_item(draft) ? 1 : options_.questions;
    for (int64_t p = 0; p < options_.pictures; ++p) {
      synth::Draws draws(scene_seed(draft));
      const auto [members, possible] = draw_crowd(draws, {CrowdAsk::kWithSpot});
      std::vector<Question> questions;
      std::vector<Cover> needed;
      for (int64_t i = 0; i < questions_each; ++i) {
        const CrowdQuestion& q = draft.draw.one_of(possible[0]);
        questions.push_back({.text = synth::text_of(members, q),
                             .answer = std::string(synth::answer_to(members, q, trait)),
                             .topic = kFirstTrait + static_cast<int>(trait),
                             .is_scored = p > 0 || i > 0});
        needed.push_back(synth::asked_by(q));
      }
      add_picture(draft, synth::crowded_scene(draws.next() >> 1, options_.difficulty, members), std::move(needed),
                  questions);
    }
  }

  void add_screens(Draft& draft) const {
    if (is_like_an_item(draft)) {
      add_item_of_screens(draft);
    } else {
      add_dense_screens(draft);
    }
  }

  void add_item_of_screens(Draft& draft) const {
    synth::Draws draws(scene_seed(draft));
    const auto ask = static_cast<ScreenAsk>(draft.draw.below(static_cast<int64_t>(ScreenAsk::kBefore) + 1));
    const synth::ScreenSequence sequence = synth::draw_screens(draws, ask, draws.index(synth::kNumColours));
    for (int number = 0; number < synth::kNumScreens; ++number) {
      const bool is_last = number + 1 == synth::kNumScreens;
      std::vector<Cover> needed = synth::needed_on(sequence, ask, number);
      needed.push_back({Cover::By::kPointer});
      add_screen(draft, draws, sequence, number, 0, std::move(needed),
                 {is_last ? Question{.text = synth::text_of(sequence, ask),
                                     .answer = std::string(synth::answer_to(sequence, ask)),
                                     .topic = topic_of(ask)}
                          : pressed_on(sequence, number)});
    }
  }

  // An item asks once in four screens what has to be found by comparing them: too seldom to be learned from. Here each
  // screen is asked about as often as it can be, and what changed also between two screens alone.
  void add_dense_screens(Draft& draft) const {
    synth::Draws draws(scene_seed(draft));
    const ScreenAsk ask =
        draft.draw.one_of(std::vector{ScreenAsk::kChanged, ScreenAsk::kUnchanged, ScreenAsk::kBefore});
    const synth::ScreenSequence sequence = synth::draw_screens(draws, ask, draws.index(synth::kNumColours));
    const bool compares = ask != ScreenAsk::kBefore;
    const int first = compares && draft.draw.chance(0.5) ? synth::kNumScreens - 2 : 0;
    for (int number = first; number < synth::kNumScreens; ++number) {
      std::vector<Question> questions;
      if (compares && number > first) questions.push_back(compared_on(sequence, number, ask));
      if (!compares && number + 1 == synth::kNumScreens)
        for (int64_t i = 0; i < options_.questions; ++i) questions.push_back(before_on(sequence, button_of(draws)));
      questions.push_back(pressed_on(sequence, number));
      while (std::ssize(questions) < options_.questions)
        questions.push_back(colour_on(sequence, number, button_of(draws)));
      // Of every button as much as of the others: which one the answer names must not show in what was left out.
      add_screen(draft, draws, sequence, number, first, {{Cover::By::kPointer}}, questions);
    }
  }

  // The patches of each button say whether it has changed since screen `number` - 1. From the answers alone that is not
  // learned: the questions about it stayed at chance for 6000 steps, while those about one screen were at 1.
  void add_screen(Draft& draft, synth::Draws& draws, const synth::ScreenSequence& sequence, int number, int first,
                  std::vector<Cover> needed, const std::vector<Question>& questions) const {
    std::vector<int64_t> says;
    if (number > first) {
      says.resize(synth::kNumButtons);
      for (size_t button = 0; button < says.size(); ++button)
        says[static_cast<size_t>(sequence.labels[button])] =
            tokens_.word(has_changed(sequence, number, button) ? "changed" : "not");
    }
    add_picture(draft, synth::screen_scene(draws.next() >> 1, options_.difficulty, sequence, number), std::move(needed),
                questions, says);
  }

  bool is_like_an_item(Draft& draft) const { return draft.draw.chance(options_.like_items); }

  static int topic_of(ScreenAsk ask) { return kFirstScreen + static_cast<int>(ask); }
  static size_t button_of(synth::Draws& draws) { return static_cast<size_t>(draws.index(synth::kNumButtons)); }

  static Question pressed_on(const synth::ScreenSequence& sequence, int number) {
    const auto pressed = static_cast<size_t>(sequence.screens[static_cast<size_t>(number)].pressed);
    return {.text = synth::ask_pressed(),
            .answer = std::string(name_of(sequence.labels[pressed])),
            .topic = topic_of(ScreenAsk::kPressed)};
  }

  static Question colour_on(const synth::ScreenSequence& sequence, int number, size_t button) {
    return {.text = synth::ask_colour_of(name_of(sequence.labels[button])),
            .answer = std::string(name_of(sequence.screens[static_cast<size_t>(number)].colours[button])),
            .topic = topic_of(ScreenAsk::kNow)};
  }

  static Question before_on(const synth::ScreenSequence& sequence, size_t button) {
    return {.text = synth::ask_colour_before(name_of(sequence.labels[button])),
            .answer = std::string(name_of(sequence.screens.front().colours[button])),
            .topic = topic_of(ScreenAsk::kBefore)};
  }

  static bool has_changed(const synth::ScreenSequence& sequence, int number, size_t button) {
    const auto at = static_cast<size_t>(number);
    return sequence.screens[at].colours[button] != sequence.screens[at - 1].colours[button];
  }

  // What changed since the screen before, or the only thing that did not.
  static Question compared_on(const synth::ScreenSequence& sequence, int number, ScreenAsk ask) {
    size_t button = 0;
    while (has_changed(sequence, number, button) != (ask == ScreenAsk::kChanged)) ++button;
    return {.text = synth::text_of(sequence, ask),
            .answer = std::string(name_of(sequence.labels[button])),
            .topic = topic_of(ask)};
  }

  // Of all pictures, patch by patch: [pictures * patches, d_v].
  at::Tensor features_of(const Draft& draft) const {
    const int64_t width = config().vision.hidden_size;
    std::vector<at::Tensor> parts;
    if (options_.features == PatchFeatures::kLabels) {
      for (const std::vector<PatchLabel>& labels : draft.labels) parts.push_back(label_features(labels, width));
      return torch::cat(parts);
    }
    const torch::NoGradGuard no_gradients;
    const auto count = static_cast<int64_t>(draft.drawings.size());
    for (int64_t first = 0; first < count; first += kPicturesAtOnce) {
      const auto begin = draft.drawings.begin() + first;
      const std::vector<synth::Drawing> some(begin, begin + std::min(kPicturesAtOnce, count - first));
      parts.push_back(patch_features(config(), tower_, processor_, some));
    }
    return torch::cat(parts);
  }

  const TurnTokens& tokens_;
  const ImageProcessor& processor_;
  CrowdTaskOptions options_;
  uint64_t seed_;
  ClipWeights tower_;
};

}  // namespace

const std::vector<std::string>& crowd_topics() {
  static const std::vector<std::string> names = {
      "colour of", "shape of", "place of", "spot of",   "colour meant", "shape meant",  "place meant",
      "pressed",   "now",      "changed",  "unchanged", "before",       "patch changed"};
  return names;
}

std::unique_ptr<LanguageTask> crowd_task(const LlavaConfig& config, const TurnTokens& tokens,
                                         const ImageProcessor& processor, const Parameters& parameters,
                                         const LanguageTaskOptions& language, const CrowdTaskOptions& options,
                                         uint64_t seed) {
  return std::make_unique<CrowdTask>(config, tokens, processor, parameters, language, options, seed);
}

}  // namespace espalier
