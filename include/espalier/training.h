// SPDX-License-Identifier: Apache-2.0
// Training from C++: the bundled demo model or a larger one, stage by stage, and the modules of ATP for any model. What
// the command line's `train-demo` and `train-atp` do, without their printing.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "espalier/engine.h"
#include "espalier/policies/atp.h"

namespace espalier {

struct TrainDemoOptions {
  std::filesystem::path out;        // states, logs and, in the end, the model folder OUT/model
  std::vector<std::string> stages;  // of demo_stages() of this recipe; empty: all, in their order
  uint64_t seed = 0;
  int threads = 1;
  int64_t max_steps = 0;                         // of a stage: it pauses there and can go on later; 0: its own end
  int64_t save_every = 0;                        // steps; 0: the stage's own
  ComputeDtype dtype = ComputeDtype::kBFloat16;  // of the arithmetic; masters are always float32
  std::string recipe = "demo";  // which model: "demo", the bundled one, or "crowded", for crowds and screens
};

struct TrainingUpdate {
  std::string stage;
  int64_t step = 0, steps = 0;                           // done, of at most
  double loss = 0;                                       // mean since the last update, or
  std::vector<std::pair<std::string, double>> accuracy;  // of an evaluation: topic, share of right answers
  std::vector<std::pair<std::string, double>> measures;  // beside the loss or the accuracy, by the log's names
};

struct TrainingCallbacks {
  std::function<bool()> should_cancel;  // asked before every step; the state is saved before the call returns
  std::function<void(const TrainingUpdate&)> on_update;
};

struct TrainDemoResult {
  bool cancelled = false;                 // by the callback or by max_steps: the same call goes on
  std::vector<std::string> finished;      // stages, in order
  std::vector<std::string> out_of_steps;  // of them: ended by their steps, short of their stop rule
};

struct DemoStage {
  std::string name, summary, recipe;
};
const std::vector<DemoStage>& demo_stages();

// Runs the stages that are not finished in `out`, each from its own saved state where there is one, else from the
// finished states of those it builds on. Throws Error for an unknown stage, a missing predecessor, a state of another
// seed, or a loss that is no number.
TrainDemoResult train_demo(const TrainDemoOptions& options, const TrainingCallbacks& callbacks);

// ---- ATP (policies/atp.h) ----

enum class AtpHead : uint8_t {
  kModule,    // thresholds from what the module reads of each picture and prompt
  kConstant,  // one learned pair of thresholds a module: the baseline that cannot adapt
};

struct TrainAtpOptions {
  std::filesystem::path model;  // the checkpoint folder
  std::filesystem::path out;    // state, log, plot and, in the end, the modules OUT/atp.safetensors with atp.json

  // Conversations in LLaVA's instruction format, or a folder of messages.json; the modules learn on their answers, one
  // drawn from each conversation with pictures. Empty: items of the synthetic benchmark's training split.
  std::filesystem::path data;
  std::filesystem::path image_folder;    // of `data`; empty: where it lies
  std::vector<std::string> suites = {};  // synthetic: suites or cells; empty: all
  std::string difficulty = "hard";       // synthetic: plain, clutter, distractor or hard

  // Image tokens that stay, as a share of those at entry: the mean over all layers, pictures and prompts.
  double target_ratio = 0.25;
  AtpSettings settings = {};  // `grid` is the model's; no layers: as in inference
  int64_t hidden_size = 256;  // of a head
  AtpHead head = AtpHead::kModule;
  // Thresholds before the first step, one for all modules or one for each: from where training finds which score is to
  // choose at which depth. 0.047 (a bias of -3) prunes few tokens.
  std::vector<double> initial_theta_r = {0.047};
  std::vector<double> initial_theta_s = {0.047};

  double atp_weight = 0.05;  // of the loss on depth
  double target_weight = 0.2;
  bool normalise_target = false;  // that loss as a share of a picture's tokens instead of in tokens
  // Steepness of the soft masks. A higher one at the end, reached in equal steps, makes them agree with inference.
  double temperature = 10.0;
  std::optional<double> final_temperature = {};

  bool train_decoder = false;  // too; then OUT/model is the checkpoint with the new weights
  int64_t steps = 1000;
  int64_t batch = 8;            // sequences of a step
  double learning_rate = 1e-3;  // of the modules; linear warm-up, then linear decay to a tenth
  double decoder_learning_rate = 2e-5;
  int64_t warm_up = 50;  // steps
  double max_gradient_norm = 1.0;
  uint64_t seed = 0;
  int64_t evaluate_every = 100;  // steps
  int64_t evaluation_items = 64;
  int64_t save_every = 50;
  int64_t max_steps = 0;  // pauses there and can go on later; 0: never

  std::optional<ComputeDtype>
      dtype;  // of the arithmetic, float32 or bfloat16; unset: the checkpoint's. Masters: float32
  DeviceKind device = DeviceKind::kCpu;
  int threads = 0;  // 0: as many as the library chooses
};

struct TrainAtpResult {
  bool cancelled = false;         // by the callback or by max_steps: the same call goes on
  int64_t steps = 0;              // done
  std::filesystem::path weights;  // for atp:weights=…; as far as they came when cancelled
  double accuracy = 0;            // of the last evaluation, with tokens removed as in inference
  double unpruned_accuracy = 0;   // on the same items with none removed; not asked when cancelled
  double hard_tokens = 0;         // image tokens of a picture on the average over layers: so, and
  double soft_tokens = 0;         // by the soft masks
};

// Goes on from the state in `out` where there is one: to the same bits, whenever the run before was stopped. The same
// options give the same modules on one machine and number of threads. Throws Error for options, data, a model or a
// state that do not go together, and for a loss that is no number (the last good state stays).
TrainAtpResult train_atp(const TrainAtpOptions& options, const TrainingCallbacks& callbacks);

}  // namespace espalier
