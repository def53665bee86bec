// SPDX-License-Identifier: Apache-2.0
// The arithmetic of fitting a FitPrune recipe (docs/specs/fitprune.md, section 3): which tokens a tolerance lets go,
// what a schedule costs, and the search for the smallest tolerance that meets a budget. Not the runs that measure
// attention.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace espalier {

// D_cross ∩ D_self: ordinals, ascending, of the tokens without which both received masses stay above 1 - alpha of the
// unpruned model's (cross_mass and self_mass).
std::vector<int64_t> fitprune_deletable(std::span<const double> cross, std::span<const double> self, double cross_mass,
                                        double self_mass, double alpha);

// Multiply-adds of image tokens alone.
struct FitpruneCost {
  int64_t num_layers = 0;
  double hidden_size = 0;        // d
  double intermediate_size = 0;  // m

  double before_output(int64_t n) const;  // 3nd² + 2n²d: projections and attention
  double behind_output(int64_t n) const;  // nd² + 3ndm: output projection and MLP
  double full(int64_t n) const;           // of all layers
  // Of a schedule that deletes deleted[l] inside layer l.
  double of(int64_t n, std::span<const int64_t> deleted) const;
};

using FitpruneCounts = std::vector<std::vector<int64_t>>;  // [sample][layer]

// Cuts counts behind the layer where the mean cost of all samples meets the budget; false where it never does.
bool meet_fitprune_budget(FitpruneCounts& counts, int64_t num_visual, const FitpruneCost& cost, double reduction);

struct FittedFitprune {
  double alpha = 0;
  double achieved = 0;  // share of full() that the recipe saves
  std::vector<int64_t> deleted;
};
// counts_at(alpha): what each sample deletes in each layer under a tolerance, without regard to the budget.
FittedFitprune search_fitprune(int64_t num_visual, const FitpruneCost& cost, double reduction,
                               const std::function<FitpruneCounts(double alpha)>& counts_at);

}  // namespace espalier
