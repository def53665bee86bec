// SPDX-License-Identifier: Apache-2.0
#include "training/layer_surgery.h"

#include <torch/types.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <string_view>

namespace espalier {

namespace {

// Calls `visit` with every ascending choice of `count` numbers out of first … last.
void for_each_choice(int first, int last, int count, std::vector<int>& chosen,
                     const std::function<void(const std::vector<int>&)>& visit) {
  if (count == 0) return visit(chosen);
  for (int i = first; i + count - 1 <= last; ++i) {
    chosen.push_back(i);
    for_each_choice(i + 1, last, count - 1, chosen, visit);
    chosen.pop_back();
  }
}

// Of a layer's parameter, without the layer's prefix.
bool writes_rows(std::string_view rest) {
  return rest.starts_with("self_attn.o_proj") || rest.starts_with("mlp.down_proj");
}

}  // namespace

std::vector<int> least_needed_layers(const LlavaConfig& config, const Parameters& parameters, const LanguageTask& task,
                                     int count) {
  std::vector<int> best, chosen;
  double lowest = std::numeric_limits<double>::infinity();
  for_each_choice(1, config.decoder.num_layers - 1, count, chosen, [&](const std::vector<int>& layers) {
    const double loss = task.evaluation_loss_without(parameters, layers);
    if (loss < lowest) {
      lowest = loss;
      best = layers;
    }
  });
  return best;
}

void move_layers_back(const LlavaConfig& config, Parameters& parameters, const std::vector<int>& removed,
                      uint64_t seed) {
  const Parameters fresh = initial_parameters(config, seed + 1);
  std::map<std::string, at::Tensor> old;
  for (const Parameter& p : parameters.all())
    if (p.name.starts_with("decoder.layers.")) old[p.name] = p.master.detach().clone();
  std::vector<int> sources(removed.size(), -1);
  for (int l = 0; l < config.decoder.num_layers; ++l)
    if (std::ranges::find(removed, l) == removed.end()) sources.push_back(l);
  for (int l = 0; l < config.decoder.num_layers; ++l)
    for (const Parameter& p : fresh.all()) {
      if (!p.name.starts_with(layer_prefix(l))) continue;
      const std::string rest = p.name.substr(layer_prefix(l).size());
      const int source = sources[static_cast<size_t>(l)];
      if (source >= 0) {
        parameters.set(p.name, old.at(layer_prefix(source) + rest));
      } else {
        parameters.set(p.name, writes_rows(rest) ? torch::zeros_like(p.master) : p.master);
      }
    }
}

void silence_first_layers(Parameters& parameters, int count) {
  for (int l = 0; l < count; ++l)
    for (const Parameter& p : parameters.all())
      if (p.name.starts_with(layer_prefix(l)) && writes_rows(std::string_view(p.name).substr(layer_prefix(l).size())))
        parameters.set(p.name, torch::zeros_like(p.master));
}

std::string layer_prefix(int layer) {
  return "decoder.layers." + std::to_string(layer) + ".";
}

}  // namespace espalier
