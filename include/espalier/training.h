// SPDX-License-Identifier: Apache-2.0
// Training from C++: the bundled demo model, stage by stage. What the command line's `train-demo` does, without its
// printing.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "espalier/engine.h"

namespace espalier {

struct TrainDemoOptions {
  std::filesystem::path out;        // states, logs and, in the end, the model folder OUT/model
  std::vector<std::string> stages;  // of demo_stages(); empty: all, in their order
  uint64_t seed = 0;
  int threads = 1;
  int64_t max_steps = 0;                         // of a stage: it pauses there and can go on later; 0: its own end
  int64_t save_every = 0;                        // steps; 0: the stage's own
  ComputeDtype dtype = ComputeDtype::kBFloat16;  // of the arithmetic; masters are always float32
};

struct TrainingUpdate {
  std::string stage;
  int64_t step = 0, steps = 0;                           // done, of at most
  double loss = 0;                                       // mean since the last update, or
  std::vector<std::pair<std::string, double>> accuracy;  // of an evaluation: topic, share of right answers
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
  std::string name, summary;
};
const std::vector<DemoStage>& demo_stages();

// Runs the stages that are not finished in `out`, each from its own saved state where there is one, else from the
// finished states of those it builds on. Throws Error for an unknown stage, a missing predecessor, a state of another
// seed, or a loss that is no number.
TrainDemoResult train_demo(const TrainDemoOptions& options, const TrainingCallbacks& callbacks);

}  // namespace espalier
