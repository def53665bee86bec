// SPDX-License-Identifier: Apache-2.0
#include <ATen/Context.h>
#include <torch/types.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>

#include "base/output_file.h"
#include "espalier/error.h"
#include "espalier/training.h"
#include "families/families.h"
#include "model/checkpoint.h"
#include "pruning/stages.h"
#include "recording/policy_files.h"
#include "training/atp_plot.h"
#include "training/atp_task.h"
#include "training/trained_checkpoint.h"

namespace espalier {

namespace {

constexpr const char* kStage = "train-atp";
constexpr std::array kLayersOf32 = {4, 14, 24};

void check(const TrainAtpOptions& o) {
  const auto expect = [](bool is_good, const std::string& what) {
    if (!is_good) throw Error("train-atp: " + what);
  };
  expect(o.target_ratio > 0 && o.target_ratio < 1, "the target ratio must be above 0 and below 1");
  expect(o.hidden_size >= 1, "the hidden size must be 1 or more");
  expect(o.atp_weight >= 0 && o.target_weight >= 0, "the weights of losses must be 0 or above");
  expect(o.temperature > 0 && o.final_temperature.value_or(1) > 0, "temperatures must be above 0");
  expect(o.steps >= 1 && o.batch >= 1 && o.evaluation_items >= 1, "steps, batch and evaluation items: 1 or more");
  expect(o.evaluate_every >= 1 && o.save_every >= 1, "evaluations and saves: every 1 or more steps");
  expect(o.learning_rate > 0 && o.decoder_learning_rate > 0, "learning rates must be above 0");
  expect(o.warm_up >= 0 && o.max_gradient_norm >= 0 && o.max_steps >= 0,
         "warm-up, gradient norm and pause must be 0 or above");
  expect(o.dtype != ComputeDtype::kFloat16,
         "the dtype must be float32 or bfloat16: float16 overflows without loss scaling");
  expect(!o.out.empty(), "a folder to write to is needed");
}

std::string text_of(double value) {
  std::array<char, 32> text;
  std::snprintf(text.data(), text.size(), "%.12g", value);
  return text.data();
}

std::string list_of(const std::vector<double>& values) {
  std::string text;
  for (const double value : values) text += (text.empty() ? "" : ":") + text_of(value);
  return text;
}

// FNV-1a over the norms: enough to tell checkpoints apart.
std::string fingerprint(const LoadedModel& model) {
  uint64_t hash = 0xCBF29CE484222325ULL;
  const auto add = [&](const at::Tensor& t) {
    const at::Tensor values = t.detach().to(torch::kFloat).cpu().contiguous();
    const auto* bytes = static_cast<const unsigned char*>(values.const_data_ptr());
    for (size_t i = 0; i < values.nbytes(); ++i) hash = (hash ^ bytes[i]) * 0x100000001B3ULL;
  };
  for (const DecoderLayerWeights& layer : model.weights.decoder.layers) add(layer.norm1), add(layer.norm2);
  add(model.weights.decoder.norm);
  std::array<char, 24> text;
  std::snprintf(text.data(), text.size(), "%016llx", static_cast<unsigned long long>(hash));
  return text.data();
}

class AtpRun {
 public:
  AtpRun(const TrainAtpOptions& options, const TrainingCallbacks& callbacks)
      : options_(options), callbacks_(callbacks), model_(open_model(options)), examples_(open_examples(options)) {
    complete_settings();
    weights_file_ = options.out / "atp.safetensors";
    check_first_thresholds();
    add_atp_modules(parameters_, settings_, options, model_.device);
    if (options.train_decoder) add_decoder();
    // What the model cannot do shows before the work.
    make_atp({.weights = std::make_shared<const AtpWeights>(modules())})->steps(model_.facts, *first_prompt_);
  }

  TrainAtpResult run() {
    const AtpTask task(model_, *examples_, settings_, options_, weights_file_.string());
    const StageResult end = run_stage(plan(), task, parameters_, options_.seed, options_.out, hooks());
    if (std::isnan(last_.hard_tokens)) note(task.evaluate_after(parameters_, end.steps));
    write_atp_weights(weights_file_, modules());
    write_atp_plot(options_.out / "train-atp.svg", log_file(options_.out, kStage),
                   options_.target_ratio * tokens_of_picture());
    if (options_.train_decoder && !end.cancelled)
      write_trained_checkpoint(options_.model, options_.out / "model", parameters_);
    if (!end.cancelled) last_.unpruned_accuracy = task.unpruned_accuracy(parameters_);
    last_.cancelled = end.cancelled;
    last_.steps = end.steps;
    last_.weights = weights_file_;
    return last_;
  }

 private:
  static LoadedModel open_model(const TrainAtpOptions& options) {
    check(options);
    if (options.train_decoder) check_outputs({options.model}, {options.out / "model"});
    std::error_code failure;
    std::filesystem::create_directories(options.out, failure);
    if (failure) throw Error(options.out.string() + ": cannot make this folder: " + failure.message());
    EngineOptions engine;
    engine.dtype = options.dtype;
    engine.device = options.device;
    engine.threads = options.threads;
    LoadedModel model = load_model(options.model, engine);
    if (model.dtype == torch::kHalf) throw Error("train-atp: this checkpoint is float16: choose --dtype f32 or bf16");
    if (!model.chat_template)
      throw Error(options.model.string() + ": the checkpoint has no chat template to make prompts with");
    if (!model.device.is_cpu()) at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/true);
    return model;
  }

  static std::unique_ptr<AtpExamples> open_examples(const TrainAtpOptions& options) {
    if (options.data.empty())
      return synthetic_examples(options.suites, synth::difficulty_named(options.difficulty), options.seed);
    const std::filesystem::path folder =
        options.image_folder.empty() ? options.data.parent_path() : options.image_folder;
    return conversation_examples(options.data, folder, options.evaluation_items, options.seed);
  }

  // Layers, and the grid of the first picture: heads that read a grid know one.
  void complete_settings() {
    settings_ = options_.settings;
    if (settings_.layers.empty()) settings_.layers = scaled_layers(kLayersOf32, model_.facts.num_layers);
    const AtpSequence first = atp_sequence(model_, examples_->draw(0, /*is_evaluation=*/true));
    first_prompt_ = first.masked.prompt;
    if (settings_.grid == GridSize{}) settings_.grid = first_prompt_->images.at(0).grid;
    last_.hard_tokens = std::nan("");
  }

  void check_first_thresholds() const {
    for (const auto* thetas : {&options_.initial_theta_r, &options_.initial_theta_s}) {
      if (thetas->size() != 1 && thetas->size() != settings_.layers.size())
        throw Error("train-atp: " + std::to_string(thetas->size()) + " initial thresholds for " +
                    std::to_string(settings_.layers.size()) + " modules");
      for (const double theta : *thetas)
        if (!(theta > 0 && theta < 1)) throw Error("train-atp: initial thresholds must be above 0 and below 1");
    }
  }

  AtpWeights modules() const { return atp_weights_of(parameters_, settings_, weights_file_.string()); }

  double tokens_of_picture() const {  // of the first prompt
    return static_cast<double>(first_prompt_->num_image_tokens(false)) /
           static_cast<double>(first_prompt_->images.size());
  }

  // The masters come from the file, which may hold more digits than the compute dtype.
  void add_decoder() {
    const Checkpoint checkpoint = Checkpoint::open(options_.model);
    for (const NamedShape& tensor : weight_names(model_.config)) {
      if (!tensor.name.starts_with("decoder.") && !tensor.name.starts_with("lm_head.")) continue;
      const TensorView& view = *checkpoint.find(tensor.name);  // load_model checked them all
      at::Tensor value = torch::empty(view.shape, scalar_type_of(view.dtype));
      std::memcpy(value.data_ptr(), view.bytes.data(), view.bytes.size());
      parameters_.add(tensor.name, value.to(model_.device));
    }
  }

  StagePlan plan() const {
    StagePlan plan{.name = kStage,
                   .schedule = {.peak = options_.learning_rate, .warm_up = options_.warm_up, .steps = options_.steps},
                   .optimizer = {.weight_decay = 0, .max_norm = options_.max_gradient_norm},
                   .trained = trained_atp_names(settings_, options_.head),
                   .evaluate_every = options_.evaluate_every,
                   .save_every = options_.save_every,
                   .pause_at = options_.max_steps,
                   .stop = {.accuracy = 2.0, .evaluations = 1}};  // the steps are the end
    if (options_.train_decoder)
      for (const char* prefix : {"decoder.", "lm_head."}) {
        plan.trained.emplace_back(prefix);
        plan.rate_factors.emplace_back(prefix, options_.decoder_learning_rate / options_.learning_rate);
      }
    plan.identity = identity();
    return plan;
  }

  Counters identity() const {
    std::string layers, strides;
    for (const int layer : settings_.layers) layers += (layers.empty() ? "" : ":") + std::to_string(layer);
    for (const int64_t stride : settings_.strides) strides += (strides.empty() ? "" : ":") + std::to_string(stride);
    const auto flag = [](bool is_set) { return std::string(is_set ? "yes" : "no"); };
    Counters of = {{"data", examples_->description()},
                   {"model", fingerprint(model_)},
                   {"layers", layers},
                   {"target_ratio", text_of(options_.target_ratio)},
                   {"hidden_size", std::to_string(options_.hidden_size)},
                   {"initial_theta_r", list_of(options_.initial_theta_r)},
                   {"initial_theta_s", list_of(options_.initial_theta_s)},
                   {"constant_head", flag(options_.head == AtpHead::kConstant)},
                   {"strategy", std::to_string(static_cast<int>(settings_.strategy))},
                   {"scores", std::to_string(static_cast<int>(settings_.scores))},
                   {"head_input", std::to_string(static_cast<int>(settings_.head_input))},
                   {"norm", std::to_string(static_cast<int>(settings_.norm))},
                   {"strides", strides},
                   {"lambda_sample", text_of(settings_.lambda_sample)},
                   {"min_keep", std::to_string(settings_.min_keep)},
                   {"atp_weight", text_of(options_.atp_weight)},
                   {"target_weight", text_of(options_.target_weight)},
                   {"normalise_target", flag(options_.normalise_target)},
                   {"temperature", text_of(options_.temperature)},
                   {"final_temperature", text_of(options_.final_temperature.value_or(options_.temperature))},
                   {"train_decoder", flag(options_.train_decoder)},
                   {"steps", std::to_string(options_.steps)},
                   {"batch", std::to_string(options_.batch)},
                   {"learning_rate", text_of(options_.learning_rate)},
                   {"decoder_learning_rate", text_of(options_.decoder_learning_rate)},
                   {"warm_up", std::to_string(options_.warm_up)},
                   {"max_gradient_norm", text_of(options_.max_gradient_norm)},
                   {"dtype", std::string(dtype_option(model_.dtype))}};
    return of;
  }

  void note(const Evaluation& evaluation) {
    last_.accuracy = evaluation.scores.at(0).accuracy();
    for (const auto& [name, value] : evaluation.measures) {
      if (name == "soft_tokens") last_.soft_tokens = value;
      if (name == "hard_tokens") last_.hard_tokens = value;
    }
  }

  TrainingHooks hooks() {
    TrainingHooks hooks;
    hooks.should_cancel = callbacks_.should_cancel;
    hooks.on_step = [this](const StageProgress& p) {
      if (callbacks_.on_update) callbacks_.on_update({kStage, p.step, p.plan.schedule.steps, p.loss, {}, p.parts});
    };
    hooks.on_evaluation = [this](const StagePlan& plan, int64_t step, const Evaluation& evaluation) {
      note(evaluation);
      if (!callbacks_.on_update) return;
      TrainingUpdate update{kStage, step, plan.schedule.steps, 0, {}, evaluation.measures};
      for (const Score& s : evaluation.scores) update.accuracy.emplace_back(s.topic, s.accuracy());
      callbacks_.on_update(update);
    };
    return hooks;
  }

  const TrainAtpOptions& options_;
  const TrainingCallbacks& callbacks_;
  LoadedModel model_;
  std::unique_ptr<AtpExamples> examples_;
  AtpSettings settings_;
  std::filesystem::path weights_file_;
  std::shared_ptr<const PromptLayout> first_prompt_;
  Parameters parameters_;
  TrainAtpResult last_;
};

}  // namespace

TrainAtpResult train_atp(const TrainAtpOptions& options, const TrainingCallbacks& callbacks) {
  return AtpRun(options, callbacks).run();
}

}  // namespace espalier
