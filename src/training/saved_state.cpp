// SPDX-License-Identifier: Apache-2.0
#include "training/saved_state.h"

#include <torch/types.h>

#include <algorithm>
#include <charconv>
#include <cstring>

#include "base/safetensors.h"
#include "espalier/error.h"

namespace espalier {

namespace {

constexpr const char* kMaster = "master.";
constexpr const char* kFirstMoment = "moment1.";
constexpr const char* kSecondMoment = "moment2.";
constexpr const char* kOptimizerSteps = "optimizer_steps";

at::Tensor read(const std::filesystem::path& file, const SafetensorsFile& tensors, const std::string& name,
                at::IntArrayRef shape) {
  const auto found = tensors.tensors().find(name);
  if (found == tensors.tensors().end()) throw Error(file.string() + ": the saved run lacks " + name);
  const TensorView& view = found->second;
  if (view.dtype != Dtype::kF32 || !std::ranges::equal(view.shape, shape))
    throw Error(file.string() + ": " + name + " is not the float32 tensor of this model's shape");
  at::Tensor value = torch::empty(shape, torch::kFloat);
  std::memcpy(value.data_ptr(), view.bytes.data(), view.bytes.size());
  return value;
}

int64_t number(const std::filesystem::path& file, const Counters& counters, const char* key) {
  const auto found = counters.find(key);
  int64_t value = 0;
  if (found == counters.end()) throw Error(file.string() + ": the saved run lacks its counter " + key);
  const std::string& text = found->second;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size())
    throw Error(file.string() + ": " + key + " must be a whole number, got \"" + text + "\"");
  return value;
}

}  // namespace

void save_state(const std::filesystem::path& file, const Parameters& parameters, const AdamW& optimizer,
                const std::vector<std::string>& trained, const Counters& counters) {
  std::vector<TensorToWrite> tensors;
  std::vector<at::Tensor> on_host;  // until they are written
  const auto add = [&](const std::string& name, const at::Tensor& t) {
    on_host.push_back(t.detach().cpu());
    tensors.push_back({name, Dtype::kF32, t.sizes().vec(), on_host.back().const_data_ptr()});
  };
  for (const Parameter& p : parameters.all()) add(kMaster + p.name, p.master);
  for (size_t i = 0; i < trained.size(); ++i) {
    add(kFirstMoment + trained[i], optimizer.first_moments()[i]);
    add(kSecondMoment + trained[i], optimizer.second_moments()[i]);
  }
  Counters all = counters;
  all[kOptimizerSteps] = std::to_string(optimizer.steps_done());
  write_safetensors(file, tensors, all);
}

Counters read_counters(const std::filesystem::path& file) {
  return SafetensorsFile::open(file).metadata();
}

void load_parameters(const std::filesystem::path& file, Parameters& parameters, std::string_view prefix) {
  const SafetensorsFile tensors = SafetensorsFile::open(file);
  for (const Parameter& p : parameters.all())
    if (p.name.starts_with(prefix)) parameters.set(p.name, read(file, tensors, kMaster + p.name, p.master.sizes()));
}

Counters load_state(const std::filesystem::path& file, Parameters& parameters, AdamW& optimizer,
                    const std::vector<std::string>& trained) {
  const SafetensorsFile tensors = SafetensorsFile::open(file);
  std::vector<at::Tensor> first, second;
  for (const std::string& name : trained) {
    first.push_back(read(file, tensors, kFirstMoment + name, parameters.at(name).sizes()));
    second.push_back(read(file, tensors, kSecondMoment + name, parameters.at(name).sizes()));
  }
  const int64_t steps = number(file, tensors.metadata(), kOptimizerSteps);
  load_parameters(file, parameters);
  optimizer.restore(first, second, steps);
  return tensors.metadata();
}

}  // namespace espalier
