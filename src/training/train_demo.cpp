// SPDX-License-Identifier: Apache-2.0
#include <ATen/Parallel.h>
#include <torch/types.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/output_file.h"
#include "espalier/error.h"
#include "espalier/training.h"
#include "training/curriculum.h"
#include "training/label_reading.h"
#include "training/language_task.h"
#include "training/layer_surgery.h"
#include "training/model_folder.h"
#include "training/saved_state.h"
#include "training/tower_task.h"

namespace espalier {

namespace {

constexpr int64_t kPoolSolos = 30000, kPoolGroups = 16000;  // for training; a tenth of it for evaluation

at::ScalarType scalar_type(ComputeDtype dtype) {
  switch (dtype) {
    case ComputeDtype::kFloat32:
      return at::kFloat;
    case ComputeDtype::kBFloat16:
      return at::kBFloat16;
    case ComputeDtype::kFloat16:
      break;
  }
  throw Error("train-demo: the dtype must be float32 or bfloat16: float16 overflows without loss scaling");
}

TrainingHooks hooks_of(const TrainingCallbacks& callbacks) {
  TrainingHooks hooks;
  hooks.should_cancel = callbacks.should_cancel;
  if (callbacks.on_update) {
    hooks.on_step = [&](const StageProgress& p) {
      callbacks.on_update({p.plan.name, p.step, p.plan.schedule.steps, p.loss, {}, {}});
    };
    hooks.on_evaluation = [&](const StagePlan& plan, int64_t step, const Evaluation& evaluation) {
      TrainingUpdate update{plan.name, step, plan.schedule.steps, 0, {}, {}};
      for (const Score& s : evaluation.scores) update.accuracy.emplace_back(s.topic, s.accuracy());
      callbacks.on_update(update);
    };
  }
  return hooks;
}

class Demo {
 public:
  Demo(const Recipe& recipe, const TrainDemoOptions& options, const TrainingCallbacks& callbacks)
      : recipe_(recipe),
        options_(options),
        callbacks_(callbacks),
        folder_(options.out / "model"),
        config_(model_config(recipe.size)),
        tokenizer_(open_tokenizer(folder_, recipe.size)),
        tokens_(tokenizer_),
        processor_(ImageProcessor::load(folder_)),
        hooks_(hooks_of(callbacks)) {}

  StageResult run(const CurriculumStage& stage) {
    Parameters parameters = initial_parameters(config_, options_.seed);
    if (stage.trains_tower()) add_tower_heads(config_, pictures_for(stage), parameters, options_.seed);
    const std::filesystem::path state = state_file(options_.out, stage.plan.name);
    const bool is_new = !std::filesystem::exists(state);
    if (is_new) {
      begin(stage, parameters);
    } else {
      load_parameters(state, parameters);
    }
    std::unique_ptr<ScenePool> pool;
    if (stage.data == CurriculumStage::Data::kPictures) {
      pool = open_pool(stage, parameters);
      if (!pool->is_complete()) return {.cancelled = true, .reached = false, .steps = 0, .scores = {}};
    }
    const std::unique_ptr<Task> task = task_of(stage, parameters, pool.get());
    if (is_new && stage.fresh_layers > 0) {
      const auto& language = static_cast<const LanguageTask&>(*task);
      const std::vector<int> removed = least_needed_layers(config_, parameters, language, stage.fresh_layers);
      move_layers_back(config_, parameters, removed, options_.seed);
    }
    StagePlan plan = stage.plan;
    for (int layer = 0; layer < stage.idle_layers; ++layer) plan.still.push_back(layer_prefix(layer));
    plan.pause_at = options_.max_steps;
    if (options_.save_every > 0) plan.save_every = options_.save_every;
    const StageResult end = run_stage(plan, *task, parameters, options_.seed, options_.out, hooks_);
    if (!end.cancelled && stage.has_tower()) {
      write_model_weights(folder_, config_, parameters);
      write_reading_curve(stage, static_cast<const LanguageTask&>(*task), parameters);
    }
    return end;
  }

 private:
  static Tokenizer open_tokenizer(const std::filesystem::path& folder, const synth::LlavaSize& size) {
    write_model_files(folder, size);
    return Tokenizer::load(folder);
  }

  static TowerPictures pictures_for(const CurriculumStage& stage) {
    return stage.data == CurriculumStage::Data::kTower ? TowerPictures::kFew : TowerPictures::kCrowded;
  }

  void begin(const CurriculumStage& stage, Parameters& parameters) const {
    if (stage.after.empty()) return silence_first_layers(parameters, stage.idle_layers);
    load_parameters(finished(stage, stage.after), parameters);
    if (!stage.has_tower()) return;
    load_parameters(finished(stage, recipe_.tower().plan.name), parameters, "vision.");
    const CurriculumStage& before = recipe_.stage(stage.after);
    if (before.data == CurriculumStage::Data::kCrowds && !before.has_tower())
      read_labels_from_tower(config_, processor_, parameters, options_.seed);
  }

  // Accuracy with all image tokens taken away before each layer: where the decoder reads its pictures. Policies inside
  // the decoder can be told apart only before that.
  void write_reading_curve(const CurriculumStage& stage, const LanguageTask& task, const Parameters& parameters) const {
    nlohmann::ordered_json curve = nlohmann::ordered_json::array();
    for (int layer = 0; layer <= config_.decoder.num_layers; ++layer) {
      nlohmann::ordered_json line = {{"without_images_before_layer", layer}};
      for (const Score& s : task.evaluate_without_images(parameters, layer))
        line["accuracy"][s.topic] = {{"accuracy", s.accuracy()}, {"n", s.count}};
      curve.push_back(std::move(line));
    }
    OutputFile out(options_.out / (stage.plan.name + ".reading.json"));
    out.write(curve.dump(1) + "\n");
    out.commit();
  }

  // The state of a stage that `stage` builds on.
  std::filesystem::path finished(const CurriculumStage& stage, const std::string& before) const {
    if (!is_finished(options_.out, before))
      throw Error("train-demo: stage " + stage.plan.name + " builds on " + before + ", which is not finished in " +
                  options_.out.string());
    return state_file(options_.out, before);
  }

  std::unique_ptr<ScenePool> open_pool(const CurriculumStage& stage, const Parameters& parameters) const {
    const synth::Difficulty& difficulty = stage.difficulties.at(0);
    std::string name = "features";
    if (difficulty.clutter) name += "-clutter";
    if (difficulty.distractor) name += "-distractor";
    const PoolPlan plan{.training = {kPoolSolos, kPoolGroups},
                        .evaluation = {kPoolSolos / 10, kPoolGroups / 10},
                        .difficulty = difficulty,
                        .seed = options_.seed};
    const auto on_progress = [&](int64_t done, int64_t total) {
      if (callbacks_.on_update) callbacks_.on_update({"features", done, total, 0, {}, {}});
    };
    return std::make_unique<ScenePool>(plan, config_, processor_, parameters, options_.out / (name + ".safetensors"),
                                       on_progress, callbacks_.should_cancel);
  }

  std::unique_ptr<Task> task_of(const CurriculumStage& stage, const Parameters& parameters,
                                const ScenePool* pool) const {
    const LanguageTaskOptions language{.dtype = scalar_type(options_.dtype), .share_layers = stage.share_layers};
    switch (stage.data) {
      case CurriculumStage::Data::kCopying:
        return copying_task(config_, tokens_, language, options_.seed, stage.sequences, stage.turns);
      case CurriculumStage::Data::kShortTurns:
        return short_turns_task(config_, tokens_, language, options_.seed, stage.sequences, stage.turns, stage.resolve);
      case CurriculumStage::Data::kTextBinding:
        return text_binding_task(config_, tokens_, language, options_.seed, stage.sequences, stage.turns, stage.echo,
                                 stage.resolve);
      case CurriculumStage::Data::kTower:
      case CurriculumStage::Data::kCrowdedTower:
        return tower_task(config_, processor_,
                          {.dtype = language.dtype,
                           .pictures = pictures_for(stage),
                           .images = stage.sequences,
                           .difficulties = stage.difficulties},
                          options_.seed);
      case CurriculumStage::Data::kPictures:
        return picture_task(config_, tokens_, *pool, language, stage.pictures, options_.seed);
      case CurriculumStage::Data::kCrowds:
        return crowd_task(config_, tokens_, processor_, parameters, language, stage.crowds, options_.seed);
    }
    return nullptr;
  }

  const Recipe& recipe_;
  const TrainDemoOptions& options_;
  const TrainingCallbacks& callbacks_;
  std::filesystem::path folder_;
  LlavaConfig config_;
  Tokenizer tokenizer_;
  TurnTokens tokens_;
  ImageProcessor processor_;
  TrainingHooks hooks_;
};

std::vector<const CurriculumStage*> chosen_stages(const Recipe& recipe, const std::vector<std::string>& names) {
  std::vector<const CurriculumStage*> chosen;
  for (const CurriculumStage& stage : recipe.stages)
    if (names.empty() || std::ranges::find(names, stage.plan.name) != names.end()) chosen.push_back(&stage);
  for (const std::string& name : names) recipe.stage(name);  // for its complaint
  return chosen;
}

}  // namespace

const std::vector<DemoStage>& demo_stages() {
  static const std::vector<DemoStage> stages = [] {
    std::vector<DemoStage> all;
    for (const Recipe& recipe : recipes())
      for (const CurriculumStage& stage : recipe.stages) all.push_back({stage.plan.name, stage.summary, recipe.name});
    return all;
  }();
  return stages;
}

TrainDemoResult train_demo(const TrainDemoOptions& options, const TrainingCallbacks& callbacks) {
  at::set_num_threads(std::max(1, options.threads));
  const Recipe& recipe = recipe_named(options.recipe);
  const std::vector<const CurriculumStage*> stages = chosen_stages(recipe, options.stages);
  Demo demo(recipe, options, callbacks);
  TrainDemoResult result;
  for (const CurriculumStage* stage : stages) {
    const StageResult end = demo.run(*stage);
    if (end.cancelled) {
      result.cancelled = true;
      break;
    }
    result.finished.push_back(stage->plan.name);
    if (!end.reached) result.out_of_steps.push_back(stage->plan.name);
  }
  return result;
}

}  // namespace espalier
