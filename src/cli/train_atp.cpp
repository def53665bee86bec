// SPDX-License-Identifier: Apache-2.0
// `espalier train-atp`: modules that choose how many visual tokens each picture keeps; one line per evaluation, a bar
// on a terminal.
#include <CLI/App.hpp>
#include <CLI/Validators.hpp>
#include <algorithm>
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <string_view>

#include "cli/bundled_model.h"
#include "cli/commands.h"
#include "cli/interrupt.h"
#include "cli/number_option.h"
#include "cli/terminal_progress.h"
#include "espalier/error.h"
#include "espalier/training.h"

namespace espalier::cli {

namespace {

double measure(const TrainingUpdate& update, std::string_view name) {
  const auto found = std::ranges::find(update.measures, name, [](const auto& m) { return m.first; });
  return found == update.measures.end() ? 0.0 : found->second;
}

void print_evaluation(const TrainingUpdate& update) {
  std::printf("step %6lld   tokens of a picture: %.2f removed, %.2f by soft masks   exact answers",
              static_cast<long long>(update.step), measure(update, "hard_tokens"), measure(update, "soft_tokens"));
  for (const auto& [topic, accuracy] : update.accuracy) std::printf(" %.3f", accuracy);
  std::printf("   their loss %.3f\n", measure(update, "loss_answers"));
  std::fflush(stdout);
}

ExitStatus train(TrainAtpOptions options) {
  if (options.model.empty()) options.model = bundled_model();
  catch_interrupts();
  TerminalProgress progress;
  TrainingCallbacks callbacks;
  callbacks.should_cancel = [] { return interrupted(); };
  callbacks.on_update = [&](const TrainingUpdate& update) {
    if (update.accuracy.empty()) {
      char text[96];
      std::snprintf(text, sizeof text, "train-atp, loss %.3f, %.1f tokens", update.loss,
                    measure(update, "soft_tokens"));
      progress.show(text, update.step, update.steps);
      return;
    }
    progress.clear();
    print_evaluation(update);
  };
  const TrainAtpResult result = train_atp(options, callbacks);
  progress.clear();
  std::printf("%.2f image tokens of a picture on the average over layers: atp:weights=%s\n", result.hard_tokens,
              result.weights.c_str());
  if (result.cancelled)
    std::printf("saved; the same command goes on\n");
  else
    std::printf("exact answers %.3f, unpruned %.3f\n", result.accuracy, result.unpruned_accuracy);
  return interrupted() ? kInterrupted : kDone;
}

// A number, or a/b.
double ratio_of(const std::string& text) {
  const auto number = [&](std::string_view part) {
    double value = 0;
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), value);
    if (error != std::errc() || end != part.data() + part.size())
      throw Error("--target-ratio: expected a number or a/b, got \"" + text + "\"");
    return value;
  };
  const size_t slash = text.find('/');
  const double ratio = slash == std::string::npos ? number(text)
                                                  : number(std::string_view(text).substr(0, slash)) /
                                                        number(std::string_view(text).substr(slash + 1));
  if (!(ratio > 0 && ratio < 1))
    throw Error("--target-ratio: expected a share above 0 and below 1, got \"" + text + "\"");
  return ratio;
}

template <typename E>
void add_choice(CLI::App& app, const std::string& name, E& value,
                std::initializer_list<std::pair<const char*, E>> words, const std::string& description) {
  const std::vector<std::pair<std::string, E>> known(words.begin(), words.end());
  std::vector<std::string> names;
  for (const auto& [word, meaning] : known) names.push_back(word);
  app.add_option_function<std::string>(
         name,
         [known, &value](const std::string& text) {
           for (const auto& [word, meaning] : known)
             if (word == text) value = meaning;
         },
         description)
      ->check(CLI::IsMember(names))
      ->type_name("NAME");
}

void add_data_options(CLI::App& app, const std::shared_ptr<TrainAtpOptions>& o) {
  app.add_option("--data", o->data,
                 "Conversations with pictures: LLaVA's instruction format (.json or .jsonl), or a folder of "
                 "messages.json; without it, items of the synthetic benchmark's training split")
      ->type_name("FILE");
  app.add_option("--image-folder", o->image_folder, "Of the pictures that --data names (where it lies)")
      ->type_name("DIR");
  app.add_option("--suite", o->suites,
                 "Synthetic items: single, detail, bind, define, or suite/cell; may be given several times (all)")
      ->type_name("NAME");
  app.add_option("--difficulty", o->difficulty, "Of synthetic pictures: plain, clutter, distractor or hard (hard)")
      ->type_name("NAME");
}

void add_method_options(CLI::App& app, const std::shared_ptr<TrainAtpOptions>& o) {
  app.add_option_function<std::string>(
         "--target-ratio", [=](const std::string& text) { o->target_ratio = ratio_of(text); },
         "Image tokens that stay, as a share (0.25 or 1/4): mean over all layers, pictures and prompts (1/4)")
      ->type_name("X");
  app.add_option("--layers", o->settings.layers,
                 "A module stands before each of these layers (4 14 24 of 32, in proportion)")
      ->type_name("N");
  add_integer(
      app, "--hidden-size", {1, 65536}, [=](int64_t n) { o->hidden_size = n; }, "Of a module's head (256)");
  app.add_option("--initial-theta-r", o->initial_theta_r,
                 "Threshold of the redundancy score before the first step, one or one for each module (0.047)")
      ->type_name("X");
  app.add_option("--initial-theta-s", o->initial_theta_s, "Of the spatial score, likewise (0.047)")->type_name("X");
  add_choice(app, "--strategy", o->settings.strategy,
             {{"both", AtpStrategy::kBoth}, {"redundant", AtpStrategy::kRedundant}, {"spatial", AtpStrategy::kSpatial}},
             "Which score may keep a token: both, redundant or spatial (both)");
  add_choice(app, "--scores", o->settings.scores,
             {{"both", AtpScores::kBoth}, {"self", AtpScores::kSelf}, {"cross", AtpScores::kCross}},
             "Attention looked at: both, self (from the picture) or cross (from text) (both)");
  add_choice(app, "--norm", o->settings.norm,
             {{"minmax", AtpNorm::kMinmax},
              {"none", AtpNorm::kNone},
              {"max", AtpNorm::kMax},
              {"sigmoid", AtpNorm::kSigmoid},
              {"rank", AtpNorm::kRank}},
             "Of the redundancy score of a crop: minmax, none, max, sigmoid, or rank, under which a threshold is the "
             "share of the tokens that go (minmax)");
  app.add_option("--strides", o->settings.strides, "Of the grids that the spatial score knows (2 4 8)")
      ->check(CLI::Range(int64_t{1}, int64_t{65536}))
      ->type_name("N");
  add_real(
      app, "--lambda-sample", {.takes_low = true}, [=](double x) { o->settings.lambda_sample = x; },
      "The spatial score of a token on a grid of stride s is 1 - X/s^2 (3)");
  add_choice(app, "--head", o->head, {{"module", AtpHead::kModule}, {"constant", AtpHead::kConstant}},
             "module: thresholds for each picture and prompt; constant: learned ones that cannot adapt (module)");
  add_choice(app, "--head-input", o->settings.head_input,
             {{"scatter", AtpHeadInput::kScatter}, {"mean", AtpHeadInput::kMean}, {"pool", AtpHeadInput::kPool}},
             "What the head reads: scatter (each place of the grid), pool, or mean, which takes any grid (scatter)");
  add_real(
      app, "--atp-weight", {.takes_low = true}, [=](double x) { o->atp_weight = x; },
      "Of the loss on tokens in deep layers (0.05)");
  add_real(
      app, "--target-weight", {.takes_low = true}, [=](double x) { o->target_weight = x; },
      "Of the loss on the distance from the target (0.2 per token)");
  app.add_flag("--normalise-target", o->normalise_target, "That distance as a share of a picture's tokens");
  add_real(
      app, "--temperature", {}, [=](double x) { o->temperature = x; }, "Steepness of the soft masks (10)");
  add_real(
      app, "--final-temperature", {}, [=](double x) { o->final_temperature = x; },
      "Reached in equal steps at the end, so that soft masks agree with inference (that of the beginning)");
}

void add_run_options(CLI::App& app, const std::shared_ptr<TrainAtpOptions>& o) {
  app.add_flag("--train-decoder", o->train_decoder, "Train the decoder too; the whole model then lies in OUT/model");
  add_integer(
      app, "--steps", {1}, [=](int64_t n) { o->steps = n; }, "Of the optimizer (1000)");
  add_integer(
      app, "--batch", {1, 65536}, [=](int64_t n) { o->batch = n; }, "Conversations per step (8)");
  add_real(
      app, "--learning-rate", {}, [=](double x) { o->learning_rate = x; }, "Of the modules (0.001)");
  add_real(
      app, "--decoder-learning-rate", {}, [=](double x) { o->decoder_learning_rate = x; }, "(0.00002)");
  add_integer(
      app, "--warm-up", {}, [=](int64_t n) { o->warm_up = n; }, "Steps in which the rate rises (50)");
  add_real(
      app, "--max-gradient-norm", {.takes_low = true}, [=](double x) { o->max_gradient_norm = x; },
      "0: no clipping (1)");
  add_integer(
      app, "--seed", {}, [=](int64_t n) { o->seed = static_cast<uint64_t>(n); }, "Of weights and data (0)");
  add_integer(
      app, "--evaluate-every", {1}, [=](int64_t n) { o->evaluate_every = n; }, "Steps (100)");
  add_integer(
      app, "--evaluation-items", {1, 1'000'000}, [=](int64_t n) { o->evaluation_items = n; },
      "Conversations of an evaluation, none of them trained on (64)");
  add_integer(
      app, "--save-every", {1}, [=](int64_t n) { o->save_every = n; }, "Steps (50)");
  add_integer(
      app, "--max-steps", {1}, [=](int64_t n) { o->max_steps = n; }, "Pause there; the same command goes on");
  app.add_option_function<std::string>(
         "--dtype",
         [=](const std::string& name) { o->dtype = name == "bf16" ? ComputeDtype::kBFloat16 : ComputeDtype::kFloat32; },
         "Of the arithmetic: f32 or bf16 (the checkpoint's); what is trained is float32")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->type_name("NAME");
  add_choice(app, "--device", o->device, {{"cpu", DeviceKind::kCpu}, {"cuda", DeviceKind::kCuda}}, "cpu or cuda (cpu)");
  add_integer(
      app, "--threads", {1, 1024}, [=](int64_t n) { o->threads = static_cast<int>(n); }, "CPU threads");
}

}  // namespace

Run add_train_atp(CLI::App& app) {
  const auto options = std::make_shared<TrainAtpOptions>();
  options->out = "train-atp";
  app.add_option("--model", options->model, "Checkpoint folder (the bundled model)")->type_name("DIR");
  app.add_option("--out", options->out,
                 "Folder for state, log and plot, and in the end atp.safetensors and atp.json (train-atp)")
      ->type_name("DIR");
  add_data_options(app, options);
  add_method_options(app, options);
  add_run_options(app, options);
  app.footer(
      "Modules for a quarter of the tokens, then a question under them:\n\n"
      "  espalier train-atp --target-ratio 1/4 --steps 300 --learning-rate 0.003 \\\n"
      "      --final-temperature 100 --out atp25\n"
      "  espalier generate --chat messages.json \\\n"
      "      --policy atp:weights=atp25/atp.safetensors");
  return [=] { return train(*options); };
}

}  // namespace espalier::cli
