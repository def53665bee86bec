// SPDX-License-Identifier: Apache-2.0
#include "training/picture_task.h"

#include <torch/types.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <set>
#include <utility>

namespace espalier {

namespace {

using synth::Attribute;

enum Topic : uint8_t {
  kBindShape,
  kBindColour,
  kBindSpot,
  kShape,
  kColour,
  kSpot,
  kCount,
  kColourOf,
  kShapeOf,
  kPosition,
  kDefinedColour,
  kDefinedShape,
  kDefinedPosition,
  kResolve,
};

struct Asked {
  std::string question, answer;
  Topic topic;
};

class PictureTask : public LanguageTask {
 public:
  PictureTask(const LlavaConfig& config, const TurnTokens& tokens, const ScenePool& pool,
              const LanguageTaskOptions& language, const PictureTaskOptions& options, uint64_t seed)
      : LanguageTask(config, language), tokens_(tokens), pool_(pool), options_(options), seed_(seed) {}

  std::vector<std::string> topics() const override { return picture_topics(); }

  TrainingBatch batch(int64_t number, bool is_evaluation) const override {
    BatchDraft draft{.draw = Draw(seed_, is_evaluation ? "pictures evaluation" : "pictures training", number),
                     .builder = BatchBuilder(tokens_, patches()),
                     .is_evaluation = is_evaluation,
                     .shows_all = options_.tokens == PictureTokens::kAll};
    if (options_.tokens == PictureTokens::kSome) draft.shows_all = draft.draw.chance(options_.all_batches);
    const bool is_long = draft.shows_all && options_.tokens == PictureTokens::kSome;
    draft.shown = options_.some;
    draft.turns = is_long ? options_.turns_of_all : options_.turns;
    const int64_t sequences = is_long ? std::max<int64_t>(1, options_.sequences / 2) : options_.sequences;
    for (int64_t s = 0; s < sequences; ++s) {
      const double kind = static_cast<double>(draft.draw.below(1000)) / 1000;
      if (kind < options_.questions) {
        add_questions(draft);
      } else if (kind < options_.questions + options_.definitions) {
        add_definitions(draft);
      } else {
        add_binding(draft);
      }
    }
    TrainingBatch batch = draft.builder.finish();
    const at::Tensor rows = torch::tensor(draft.builder.feature_rows(), torch::kLong);
    batch.features = source().index_select(0, rows);
    return batch;
  }

 private:
  struct BatchDraft {
    Draw draw;
    BatchBuilder builder;
    bool is_evaluation;
    bool shows_all;
    int64_t turns = 0;
    int64_t shown = 0;  // tokens of a picture, if not all
  };

  int64_t patches() const { return config().vision.num_patches(); }

  // The rows that slots name: patches of all scenes, or the means of objects and, behind them, of spots.
  at::Tensor source() const {
    if (options_.tokens != PictureTokens::kMean) return pool_.features();
    if (!means_.defined()) means_ = torch::cat({pool_.object_means(), pool_.spot_means()});
    return means_;
  }

  std::vector<ImageSlot> slots(BatchDraft& draft, int64_t scene, bool asks_spot) const {
    if (options_.tokens == PictureTokens::kMean)
      return {{.place = patches() - 1, .feature = asks_spot ? pool_.object_means().size(0) + scene : scene}};
    std::vector<int64_t> places(static_cast<size_t>(patches()));
    std::iota(places.begin(), places.end(), 0);
    if (!draft.shows_all) keep_some(draft.draw, pool_.scene(scene), draft.shown, places);
    std::vector<ImageSlot> result;
    for (const int64_t p : places) result.push_back({.place = p, .feature = scene * patches() + p});
    return result;
  }

  // One patch of each object and of the spot, the other patches of the spot, of objects, of the rest, each in random
  // order, as far as `count` reaches; ascending in the end.
  static void keep_some(Draw& draw, const PoolScene& scene, int64_t count, std::vector<int64_t>& places) {
    constexpr size_t kSpot = synth::kMaxObjects;
    std::array<bool, synth::kMaxObjects + 1> has{};  // each object, the spot
    const auto index_in = [](const std::vector<uint8_t>& v, int64_t p) { return std::ranges::find(v, p) - v.begin(); };
    draw.shuffle(places);
    std::vector<std::pair<int, int64_t>> ranked;
    for (const int64_t p : places) {
      const auto object = static_cast<size_t>(index_in(scene.object_patches, p));
      const auto spot = static_cast<size_t>(index_in(scene.spot_patches, p));
      int rank = 3;
      if (object < scene.object_patches.size()) rank = std::exchange(has[scene.owners[object]], true) ? 2 : 0;
      if (spot < scene.spot_patches.size()) rank = std::exchange(has[kSpot], true) ? 1 : 0;
      ranked.emplace_back(rank, p);
    }
    std::ranges::stable_sort(ranked, {}, &std::pair<int, int64_t>::first);
    places.clear();
    for (int64_t i = 0; i < count; ++i) places.push_back(ranked[static_cast<size_t>(i)].second);
    std::ranges::sort(places);
  }

  Attribute draw_attribute(Draw& draw) const {
    double sum = 0;
    for (const double share : options_.attribute_share) sum += share;
    double at = sum * static_cast<double>(draw.below(10000)) / 10000;
    for (int a = 0; a + 1 < synth::kNumAttributes; ++a) {
      at -= options_.attribute_share[static_cast<size_t>(a)];
      if (at < 0) return static_cast<Attribute>(a);
    }
    return Attribute::kSpot;
  }

  void add_binding(BatchDraft& draft) const {
    Draw& draw = draft.draw;
    const Attribute attribute = draw_attribute(draw);
    const std::vector<int64_t> classes = draw_classes(draw, draw.between(2, 5));
    if (options_.fewest > 0) draft.shown = draw.between(options_.fewest, options_.some);
    const std::vector<std::string> words = draw_words(draw, attribute, static_cast<int64_t>(classes.size()));
    draft.builder.begin_sequence();
    std::set<size_t> seen;
    for (int64_t t = 0; t < draft.turns; ++t) {
      const auto pick = static_cast<size_t>(draw.below(static_cast<int64_t>(classes.size())));
      const int64_t c = classes[pick];
      const int64_t scene = draw.one_of(pool_.solos(draft.is_evaluation, attribute, c));
      const std::vector<ImageSlot> shown = slots(draft, scene, attribute == Attribute::kSpot);
      if (draw.chance(options_.echo)) {
        draft.builder.add_turn(synth::ask(attribute), std::string(class_name(attribute, c)), shown, true,
                               kShape + static_cast<int>(attribute));
      } else {
        const bool is_known = !seen.insert(pick).second;
        draft.builder.add_turn(synth::ask_name(attribute), words[pick], shown, is_known,
                               kBindShape + static_cast<int>(attribute));
      }
    }
  }

  void add_questions(BatchDraft& draft) const {
    draft.builder.begin_sequence();
    draft.shown = options_.some;
    for (int64_t t = 0; t < draft.turns; ++t) {
      if (draft.draw.chance(0.25)) {
        const Attribute attribute = draw_attribute(draft.draw);
        const int64_t c = draft.draw.below(synth::kNumClasses);
        const int64_t scene = draft.draw.one_of(pool_.solos(draft.is_evaluation, attribute, c));
        draft.builder.add_turn(synth::ask(attribute), std::string(class_name(attribute, c)),
                               slots(draft, scene, attribute == Attribute::kSpot), true,
                               kShape + static_cast<int>(attribute));
        continue;
      }
      const bool counts = draft.draw.chance(0.4);  // learned last of all
      const int64_t objects = draft.draw.between(counts ? 1 : 2, synth::kMaxObjects);
      const int64_t scene = draft.draw.one_of(pool_.groups(draft.is_evaluation, objects));
      const Asked asked =
          counts ? Asked{synth::ask_count(), std::string(synth::name_of_count(static_cast<int>(objects))), kCount}
                 : about_one(draft.draw, pool_.scene(scene));
      draft.builder.add_turn(asked.question, asked.answer, slots(draft, scene, false), true, asked.topic);
    }
  }

  Asked about_one(Draw& draw, const PoolScene& scene) const {
    const synth::Object& o = draw.one_of(scene.objects);
    switch (draw.below(4)) {  // places are learned last, and twice as often
      case 0:
        return {synth::ask_colour_of(name_of(o.shape)), std::string(name_of(o.colour)), kColourOf};
      case 1:
        return {synth::ask_shape_of(name_of(o.colour)), std::string(name_of(o.shape)), kShapeOf};
      default:
        return {synth::ask_place_of(name_of(o.shape)), std::string(name_of(o.place())), kPosition};
    }
  }

  // Examples name every shape (or colour) that will be asked about; then pictures with several objects, in one of which
  // the named thing stands.
  void add_definitions(BatchDraft& draft) const {
    Draw& draw = draft.draw;
    const Attribute attribute = draw.chance(0.67) ? Attribute::kShape : Attribute::kColour;
    const std::vector<int64_t> classes = draw_classes(draw, draw.between(2, 3));
    const std::vector<std::string> words = draw_words(draw, attribute, static_cast<int64_t>(classes.size()));
    draft.builder.begin_sequence();
    if (options_.fewest > 0)
      draft.shown = draw.between(std::max<int64_t>(options_.fewest, synth::kMaxObjects), options_.some);
    for (size_t i = 0; i < classes.size(); ++i) {
      const int64_t scene = draw.one_of(pool_.solos(draft.is_evaluation, attribute, classes[i]));
      draft.builder.add_turn(synth::ask_name(attribute), words[i], slots(draft, scene, false), false, kNotCounted);
    }
    for (int64_t t = static_cast<int64_t>(classes.size()); t < draft.turns; ++t) {
      const auto pick = static_cast<size_t>(draw.below(static_cast<int64_t>(classes.size())));
      const auto [scene, object] = group_with(draft, attribute, classes[pick]);
      const Asked asked =
          draw.chance(options_.resolve)
              ? Asked{ask_class_of(attribute, words[pick]), std::string(class_name(attribute, classes[pick])), kResolve}
              : about_defined(draw, attribute, words[pick], pool_.scene(scene).objects[object]);
      draft.builder.add_turn(asked.question, asked.answer, slots(draft, scene, false), true, asked.topic);
    }
  }

  // With the real name the question is the same but for the word, and tells how the word's is to be answered.
  Asked about_defined(Draw& draw, Attribute attribute, const std::string& word, const synth::Object& o) const {
    const bool is_real = draw.chance(options_.real);
    if (attribute == Attribute::kColour)
      return {synth::ask_shape_of(is_real ? name_of(o.colour) : word), std::string(name_of(o.shape)),
              is_real ? kShapeOf : kDefinedShape};
    const std::string_view noun = is_real ? name_of(o.shape) : word;
    if (draw.chance(0.4))
      return {synth::ask_colour_of(noun), std::string(name_of(o.colour)), is_real ? kColourOf : kDefinedColour};
    return {synth::ask_place_of(noun), std::string(name_of(o.place())), is_real ? kPosition : kDefinedPosition};
  }

  // A scene of two to four objects, one of the class, and which it is.
  std::pair<int64_t, size_t> group_with(BatchDraft& draft, Attribute attribute, int64_t c) const {
    for (;;) {
      const int64_t scene =
          draft.draw.one_of(pool_.groups(draft.is_evaluation, draft.draw.between(2, synth::kMaxObjects)));
      const std::vector<synth::Object>& objects = pool_.scene(scene).objects;
      for (size_t i = 0; i < objects.size(); ++i) {
        const auto value = attribute == Attribute::kShape ? static_cast<int64_t>(objects[i].shape)
                                                          : static_cast<int64_t>(objects[i].colour);
        if (value == c) return {scene, i};
      }
    }
  }

  static std::vector<int64_t> draw_classes(Draw& draw, int64_t count) {
    std::vector<int64_t> classes(synth::kNumClasses);
    std::iota(classes.begin(), classes.end(), 0);
    draw.shuffle(classes);
    classes.resize(static_cast<size_t>(count));
    return classes;
  }

  const TurnTokens& tokens_;
  const ScenePool& pool_;
  PictureTaskOptions options_;
  uint64_t seed_;
  mutable at::Tensor means_;
};

}  // namespace

const std::vector<std::string>& picture_topics() {
  static const std::vector<std::string> names = {"bind shape",       "bind colour", "bind spot",      "shape",
                                                 "colour",           "spot",        "count",          "colour of",
                                                 "shape of",         "position",    "defined colour", "defined shape",
                                                 "defined position", "resolve"};
  return names;
}

std::unique_ptr<LanguageTask> picture_task(const LlavaConfig& config, const TurnTokens& tokens, const ScenePool& pool,
                                           const LanguageTaskOptions& language, const PictureTaskOptions& options,
                                           uint64_t seed) {
  return std::make_unique<PictureTask>(config, tokens, pool, language, options, seed);
}

}  // namespace espalier
