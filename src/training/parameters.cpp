// SPDX-License-Identifier: Apache-2.0
#include "training/parameters.h"

#include <ATen/CPUGeneratorImpl.h>
#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/random.h"
#include "espalier/error.h"
#include "families/families.h"
#include "families/llava/llava.h"

namespace espalier {

namespace {

uint64_t hash_of(std::string_view text) {  // FNV-1a
  uint64_t hash = 0xCBF29CE484222325ULL;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3ULL;
  return hash;
}

at::Tensor normal(const std::string& name, at::IntArrayRef shape, double deviation, uint64_t seed) {
  const at::Generator generator =
      at::detail::createCPUGenerator(SplitMix64::of_stream(seed, hash_of(name) >> 1).next());
  return torch::empty(shape, torch::kFloat).normal_(0, deviation, generator);
}

// Blocks that write to the residual stream start small, so that depth does not blow it up.
double residual_gain(const LlavaConfig& config, std::string_view name) {
  const auto has = [&](std::string_view part) { return name.find(part) != std::string_view::npos; };
  if (has("o_proj") || has("down_proj")) return 1 / std::sqrt(2.0 * config.decoder.num_layers);
  if (has("out_proj") || has("fc2")) return 1 / std::sqrt(2.0 * config.vision.num_layers);
  return 1;
}

at::Tensor initial(const LlavaConfig& config, const NamedShape& tensor, uint64_t seed) {
  const auto has = [&](std::string_view part) { return tensor.name.find(part) != std::string::npos; };
  const at::IntArrayRef shape = tensor.shape;
  if (tensor.name.ends_with(".bias")) return torch::zeros(shape);
  if (has("norm") || has("layrnorm")) return torch::ones(shape);
  if (has("embed_tokens") || has("class_embedding")) return normal(tensor.name, shape, 0.3, seed);
  if (has("position_embedding")) return normal(tensor.name, shape, 0.1, seed);
  int64_t fan_in = 1;
  for (size_t i = 1; i < shape.size(); ++i) fan_in *= shape[i];
  const double gain = has("lm_head") ? 0.25 : residual_gain(config, tensor.name);
  return normal(tensor.name, shape, gain / std::sqrt(static_cast<double>(fan_in)), seed);
}

}  // namespace

void Parameters::add(std::string name, const at::Tensor& value) {
  all_.push_back({std::move(name), value.detach().to(torch::kFloat).clone()});
}

bool Parameters::has(std::string_view name) const {
  return std::ranges::any_of(all_, [&](const Parameter& p) { return p.name == name; });
}

const at::Tensor& Parameters::at(std::string_view name) const {
  const auto found = std::ranges::find_if(all_, [&](const Parameter& p) { return p.name == name; });
  if (found == all_.end()) throw Error("training: there is no parameter " + std::string(name));
  return found->master;
}

void Parameters::set(std::string_view name, const at::Tensor& value) {
  const torch::NoGradGuard no_gradients;
  at::Tensor(at(name)).copy_(value);
}

std::vector<Parameter> Parameters::train_only(const std::vector<std::string>& prefixes,
                                              const std::vector<std::string>& except) {
  std::vector<Parameter> chosen;
  for (Parameter& p : all_) {
    const auto begins_it = [&](const std::string& prefix) { return p.name.starts_with(prefix); };
    const bool trained = std::ranges::any_of(prefixes, begins_it) && std::ranges::none_of(except, begins_it);
    p.master.set_requires_grad(trained);
    if (trained) chosen.push_back(p);
  }
  return chosen;
}

LlavaWeights bind_weights(const LlavaConfig& config, const WeightSource& source) {
  LlavaTower tower = bind_llava_tower(config, source);
  return {.vision = std::move(tower.vision),
          .projector = std::move(tower.projector),
          .decoder = bind_decoder(config.decoder, source)};
}

Parameters initial_parameters(const LlavaConfig& config, uint64_t seed) {
  Parameters parameters;
  std::vector<NamedShape> names = weight_names(describe(config));
  for (const char* part : {"weight", "bias"})  // published files hold it, though the features never pass it
    names.push_back({std::string("vision.post_layernorm.") + part, {config.vision.hidden_size}});
  for (const NamedShape& tensor : names) parameters.add(tensor.name, initial(config, tensor, seed));
  return parameters;
}

at::Tensor initial_linear(const std::string& name, int64_t out, int64_t in, uint64_t seed) {
  return normal(name, {out, in}, 1 / std::sqrt(static_cast<double>(in)), seed);
}

LlavaWeights bind_parameters(const LlavaConfig& config, const Parameters& parameters, at::ScalarType dtype) {
  return bind_weights(config, [&](const std::string& name, at::IntArrayRef) { return parameters.at(name).to(dtype); });
}

}  // namespace espalier
