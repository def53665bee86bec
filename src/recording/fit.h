// SPDX-License-Identifier: Apache-2.0
// Calibration: runs a model on a few prompts and chooses what a policy then applies: FitPrune's counts, VTW's layer,
// constant thresholds for ATP. The arithmetic of the choices is the policies'; here are the runs.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "espalier/generation.h"
#include "pruning/fitprune_fit.h"
#include "runtime/loaded_model.h"

namespace espalier {

// Prompts are asked for one by one, several times each.
struct Calibration {
  size_t num_prompts = 0;
  std::function<Prompt(size_t i)> prompt;
  Callbacks callbacks;  // progress counts runs, stage "fit"
};

// ---- fitprune ----

struct FitpruneFit {
  int64_t num_visual = 0;  // of every prompt
  FittedFitprune fitted;
};
// Live: each tolerance runs every prompt again with its tokens deleted inside the layers. reduction in (0, 1). Throws
// Error when prompts differ in their number of image tokens or have no text behind them, Cancelled when asked to.
FitpruneFit fit_fitprune(const LoadedModel& model, const Calibration& calibration, double reduction);
std::string fitprune_recipe_json(const LoadedModel& model, const FitpruneFit& fit, double reduction);

// ---- vtw ----

struct VtwFit {
  int first_layer = 0;     // of the candidates first_layer … depth - 1
  std::vector<double> kl;  // mean over prompts, one a candidate
  int layer = 0;           // the first within eta; the depth where none is
};
// KL(withdrawn || full) of the first answer token, natural logarithm.
VtwFit fit_vtw(const LoadedModel& model, const Calibration& calibration, double eta, int first_layer);
std::string vtw_recipe_json(const LoadedModel& model, const VtwFit& fit, double eta);

// Of two distributions given by their logits.
double kl_divergence(std::span<const float> of_logits, std::span<const float> from_logits);
int first_within(std::span<const double> kl, int first_layer, int num_layers, double eta);

// ---- atp ----

struct AtpFit {
  std::string spec;        // with the thresholds
  double theta = 0;        // theta_r, and theta_s unless the spec gives it
  double mean_tokens = 0;  // image tokens of a picture, over all layers, pictures and prompts
};
// Bisects the threshold until the mean comes as close to `wanted_tokens` as it does. spec: `atp` with options, without
// weights and theta_r.
AtpFit fit_atp(const LoadedModel& model, const Calibration& calibration, const std::string& spec, double wanted_tokens);

}  // namespace espalier
