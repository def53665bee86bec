// SPDX-License-Identifier: Apache-2.0
#include "recording/policy_files.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include "base/json_fields.h"
#include "base/json_file.h"
#include "base/output_file.h"
#include "base/safetensors.h"
#include "espalier/error.h"
#include "espalier/policy_plugin.h"

namespace espalier {

namespace {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

constexpr int64_t kMost = int64_t{1} << 24;  // of any count in these files; products of two stay harmless

template <typename E, size_t n>
using Words = std::array<std::pair<std::string_view, E>, n>;

constexpr Words<AtpNorm, 5> kNorms = {{{"minmax", AtpNorm::kMinmax},
                                       {"none", AtpNorm::kNone},
                                       {"max", AtpNorm::kMax},
                                       {"sigmoid", AtpNorm::kSigmoid},
                                       {"rank", AtpNorm::kRank}}};
constexpr Words<AtpHeadInput, 3> kHeadInputs = {
    {{"scatter", AtpHeadInput::kScatter}, {"mean", AtpHeadInput::kMean}, {"pool", AtpHeadInput::kPool}}};
constexpr Words<AtpStrategy, 3> kStrategies = {
    {{"both", AtpStrategy::kBoth}, {"redundant", AtpStrategy::kRedundant}, {"spatial", AtpStrategy::kSpatial}}};
constexpr Words<AtpScores, 3> kScores = {
    {{"both", AtpScores::kBoth}, {"self", AtpScores::kSelf}, {"cross", AtpScores::kCross}}};
constexpr Words<AtpActivation, 2> kActivations = {{{"none", AtpActivation::kNone}, {"relu", AtpActivation::kRelu}}};
constexpr Words<Site, 5> kSites = {{{"vision_output", Site::kVisionOutput},
                                    {"projector_output", Site::kProjectorOutput},
                                    {"before_layer", Site::kBeforeLayer},
                                    {"after_attention", Site::kAfterAttention},
                                    {"cache", Site::kCache}}};

// One object of a file. Every getter throws Error with file and field unless the value is there and in its range.
class Fields {
 public:
  Fields(const Json& object, const std::string& file, const std::string& prefix = "") : fields_(object, file, prefix) {}

  int64_t integer(const char* key, int64_t low, int64_t high = kMost) const {
    const auto value = fields_.integer(key);
    if (!value || *value < low || *value > high)
      fields_.fail(key, "an integer from " + std::to_string(low) + " to " + std::to_string(high));
    return *value;
  }
  double number(const char* key) const {
    const auto value = fields_.number(key);
    if (!value) fields_.fail(key, "a number");
    return *value;
  }
  std::vector<int64_t> integers(const char* key, int64_t low, int64_t high = kMost) const {
    const Json* value = fields_.find(key);
    const auto is_in_range = [&](const Json& item) {
      return item.is_number_integer() && item.get<double>() >= static_cast<double>(low) &&
             item.get<double>() <= static_cast<double>(high);
    };
    if (!value || !value->is_array() || !std::ranges::all_of(*value, is_in_range))
      fields_.fail(key, "a list of integers from " + std::to_string(low) + " to " + std::to_string(high));
    return value->get<std::vector<int64_t>>();
  }
  template <typename E, size_t n>
  E word(const char* key, const Words<E, n>& words) const {
    const auto value = fields_.string(key);
    std::string known;
    for (const auto& [word, meaning] : words) {
      if (value == word) return meaning;
      known += (known.empty() ? "" : ", ") + std::string(word);
    }
    fields_.fail(key, "one of " + known);
  }
  const Json* find(const char* key) const { return fields_.find(key); }
  [[noreturn]] void fail(const char* key, const std::string& expected) const { fields_.fail(key, expected); }

 private:
  JsonFields fields_;
};

void check_method(const Fields& fields, std::string_view method) {
  const Json* value = fields.find("method");
  if (!value || *value != method) fields.fail("method", "\"" + std::string(method) + "\"");
}

std::string text_of(const std::vector<int64_t>& shape) {
  std::string text;
  for (const int64_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}

// ---- ATP modules ----

std::filesystem::path settings_file(const std::filesystem::path& weights) {
  return std::filesystem::path(weights).replace_extension(".json");
}

AtpSettings read_settings(const std::filesystem::path& path, int64_t& hidden_size) {
  const std::string file = path.string();
  const Json json = read_json_file(path);
  const Fields fields(json, file);
  fields.integer("format", 1, 1);
  AtpSettings settings;
  for (const int64_t layer : fields.integers("layers", 1)) settings.layers.push_back(static_cast<int>(layer));
  if (settings.layers.empty() || !std::ranges::is_sorted(settings.layers, std::ranges::less_equal{}))
    fields.fail("layers", "layers in ascending order");
  const std::vector<int64_t> grid = fields.integers("grid", 1, 4096);
  if (grid.size() != 2) fields.fail("grid", "two integers, rows and columns");
  settings.grid = {grid[0], grid[1]};
  hidden_size = fields.integer("hidden_size", 1);
  settings.strides = fields.integers("strides", 1);
  if (settings.strides.empty()) fields.fail("strides", "at least one stride");
  settings.lambda_sample = fields.number("lambda_sample");
  settings.norm = fields.word("norm", kNorms);
  settings.head_input = fields.word("head_input", kHeadInputs);
  settings.activation = fields.word("activation", kActivations);
  settings.min_keep = fields.integer("min_keep", 0);
  // Files may leave these out: both.
  if (fields.find("strategy")) settings.strategy = fields.word("strategy", kStrategies);
  if (fields.find("scores")) settings.scores = fields.word("scores", kScores);
  return settings;
}

int64_t head_width(const AtpSettings& settings) {
  switch (settings.head_input) {
    case AtpHeadInput::kMean:
      return 2;
    case AtpHeadInput::kPool:
      return 512;
    case AtpHeadInput::kScatter:
      break;
  }
  return 2 * settings.grid.rows * settings.grid.cols;
}

// The tensors of a module, in the file's names.
template <typename Module, typename Visit>
void for_each_tensor(Module& module, int64_t hidden_size, int64_t width, Visit&& visit) {
  visit("mix.weight", module.mix_weight, std::vector<int64_t>{hidden_size, width});
  visit("mix.bias", module.mix_bias, std::vector<int64_t>{hidden_size});
  visit("redundancy.weight", module.redundancy_weight, std::vector<int64_t>{1, hidden_size});
  visit("redundancy.bias", module.redundancy_bias, std::vector<int64_t>{1});
  visit("spatial.weight", module.spatial_weight, std::vector<int64_t>{1, hidden_size});
  visit("spatial.bias", module.spatial_bias, std::vector<int64_t>{1});
}

at::Tensor read_tensor(const SafetensorsFile& file, const std::string& where, const std::string& name,
                       const std::vector<int64_t>& shape) {
  const auto found = file.tensors().find(name);
  if (found == file.tensors().end()) throw Error(where + ": tensor " + name + " is missing");
  const TensorView& view = found->second;
  if (view.dtype != Dtype::kF32)
    throw Error(where + ": " + name + ": expected F32, got " + std::string(name_of(view.dtype)));
  if (view.shape != shape)
    throw Error(where + ": " + name + ": expected shape " + text_of(shape) + ", got " + text_of(view.shape));
  at::Tensor tensor = at::empty(shape, at::kFloat);
  std::memcpy(tensor.data_ptr(), view.bytes.data(), view.bytes.size());
  const auto* values = tensor.const_data_ptr<float>();
  if (!std::all_of(values, values + tensor.numel(), [](float v) { return std::isfinite(v); }))
    throw Error(where + ": " + name + " holds a number that is not finite");
  return tensor;
}

}  // namespace

AtpWeights PolicyFilesOnDisk::atp_weights(const std::string& file) const {
  AtpWeights weights{.file = file, .settings = {}, .modules = {}};
  int64_t hidden_size = 0;
  const SafetensorsFile tensors = SafetensorsFile::open(file);
  weights.settings = read_settings(settings_file(file), hidden_size);
  std::set<std::string> expected;
  for (size_t i = 0; i < weights.settings.layers.size(); ++i) {
    const std::string prefix = "modules." + std::to_string(i) + ".";
    for_each_tensor(weights.modules.emplace_back(), hidden_size, head_width(weights.settings),
                    [&](const char* name, at::Tensor& tensor, const std::vector<int64_t>& shape) {
                      tensor = read_tensor(tensors, file, prefix + name, shape);
                      expected.insert(prefix + name);
                    });
  }
  for (const auto& [name, view] : tensors.tensors())
    if (!expected.contains(name))
      throw Error(file + ": tensor " + name + " belongs to none of the " + std::to_string(weights.modules.size()) +
                  " modules of " + settings_file(file).string());
  return weights;
}

void write_atp_weights(const std::filesystem::path& file, const AtpWeights& weights) {
  const AtpSettings& settings = weights.settings;
  const auto word = [](const auto& words, auto meaning) {
    return std::ranges::find(words, meaning, [](const auto& entry) { return entry.second; })->first;
  };
  const int64_t hidden_size = weights.modules.at(0).mix_bias.size(0);
  const OrderedJson json = {{"format", 1},
                            {"layers", settings.layers},
                            {"grid", {settings.grid.rows, settings.grid.cols}},
                            {"hidden_size", hidden_size},
                            {"strides", settings.strides},
                            {"lambda_sample", settings.lambda_sample},
                            {"norm", word(kNorms, settings.norm)},
                            {"head_input", word(kHeadInputs, settings.head_input)},
                            {"activation", word(kActivations, settings.activation)},
                            {"min_keep", settings.min_keep},
                            {"strategy", word(kStrategies, settings.strategy)},
                            {"scores", word(kScores, settings.scores)}};
  std::vector<at::Tensor> held;
  std::vector<TensorToWrite> tensors;
  for (size_t i = 0; i < weights.modules.size(); ++i)
    for_each_tensor(
        weights.modules[i], hidden_size, head_width(settings),
        [&](const char* name, const at::Tensor& tensor, const std::vector<int64_t>& shape) {
          held.push_back(tensor.detach().to(at::kCPU, at::kFloat).contiguous());
          tensors.push_back({"modules." + std::to_string(i) + "." + name, Dtype::kF32, shape, held.back().data_ptr()});
        });
  OutputFile settings_out(settings_file(file));
  settings_out.write(json.dump(1) + "\n");
  write_safetensors(file, tensors);
  settings_out.commit();
}

// ---- recipes ----

FitpruneRecipe PolicyFilesOnDisk::fitprune_recipe(const std::string& file) const {
  const Json json = read_json_file(file);
  const Fields fields(json, file);
  check_method(fields, "fitprune");
  const int64_t layers = fields.integer("layers", 1);
  FitpruneRecipe recipe{.name = file, .num_visual = fields.integer("n_visual", 1), .deleted = {}};
  recipe.deleted = fields.integers("delete", 0);
  if (std::ssize(recipe.deleted) != layers) fields.fail("delete", std::to_string(layers) + " counts, one a layer");
  int64_t sum = 0;
  for (const int64_t count : recipe.deleted) sum += count;
  if (sum > recipe.num_visual)
    fields.fail("delete", "counts that add up to n_visual=" + std::to_string(recipe.num_visual) + " or less");
  return recipe;
}

VtwRecipe PolicyFilesOnDisk::vtw_recipe(const std::string& file) const {
  const Json json = read_json_file(file);
  const Fields fields(json, file);
  check_method(fields, "vtw");
  const int64_t layers = fields.integer("layers", 1);
  return {file, static_cast<int>(layers), static_cast<int>(fields.integer("layer", 0, layers))};
}

// ---- kept sets ----

namespace {

std::vector<int64_t> ascending(const Fields& fields, const char* key) {
  std::vector<int64_t> list = fields.integers(key, 0, int64_t{1} << 40);
  if (!std::ranges::is_sorted(list, std::ranges::less_equal{})) fields.fail(key, "source indices in ascending order");
  return list;
}

// Vectors that entered, from the safetensors file beside the result.
void read_merged(const Fields& fields, const std::string& file, KeptPoint& point) {
  const Json* name = fields.find("merged");
  if (!name) return;
  if (!name->is_string() || point.point.site == Site::kCache)
    fields.fail("merged", "a tensor's name, not at the cache");
  point.sources = fields.integers("merged_source", -1, int64_t{1} << 40);
  const char* whose = fields.find("merged_position_from") ? "merged_position_from" : "merged_source";
  point.position_from = fields.integers(whose, -1, int64_t{1} << 40);
  if (point.position_from.size() != point.sources.size() || std::ranges::count(point.position_from, -1) > 0)
    fields.fail("merged_position_from", "for each of merged_source the token whose position it takes");
  const std::string beside = std::filesystem::path(file).replace_extension(".safetensors").string();
  const SafetensorsFile tensors = SafetensorsFile::open(beside);
  const auto found = tensors.tensors().find(name->get<std::string>());
  const auto rows = std::ssize(point.sources);
  if (found == tensors.tensors().end() || found->second.shape.size() != 2 || found->second.shape[0] != rows)
    throw Error(beside + ": expected a tensor " + name->get<std::string>() + " with " + std::to_string(rows) + " rows");
  point.vectors = read_tensor(tensors, beside, name->get<std::string>(), found->second.shape);
}

KeptPoint kept_point(const Json& json, const std::string& file, const std::string& prefix) {
  const Fields fields(json, file, prefix);
  KeptPoint point;
  point.point.site = fields.word("site", kSites);
  if (point.point.site >= Site::kBeforeLayer) point.point.layer = static_cast<int>(fields.integer("layer", 0));
  if (point.point.site != Site::kCache) {
    point.kept = ascending(fields, "kept");
    read_merged(fields, file, point);
    return point;
  }
  const Json* heads = fields.find("kept");
  if (!heads || !heads->is_array() || heads->empty()) fields.fail("kept", "one list for each KV head");
  for (const Json& head : *heads) {
    const Json one = {{"kept", head}};
    point.kept_per_head.push_back(ascending(Fields(one, file, prefix), "kept"));
  }
  return point;
}

}  // namespace

KeptSets PolicyFilesOnDisk::kept_sets(const std::string& file) const {
  const Json json = read_json_file(file);
  const Fields fields(json, file);
  const Json* points = fields.find("points");
  if (!points || !points->is_array()) fields.fail("points", "a list of points");
  KeptSets sets{.file = file, .points = {}};
  for (size_t i = 0; i < points->size(); ++i) {
    KeptPoint point = kept_point((*points)[i], file, "points." + std::to_string(i) + ".");
    // Policies of a pipeline may act at one point; the last of them says what is alive behind it.
    if (!sets.points.empty() && sets.points.back().point == point.point) {
      if (sets.points.back().vectors.defined() || point.vectors.defined())
        throw Error(file + ": field \"points." + std::to_string(i) +
                    "\": of two sets at one point none may have merged vectors");
      sets.points.pop_back();
    }
    sets.points.push_back(std::move(point));
  }
  return sets;
}

PolicyPtr make_policy(std::string_view spec) {
  return make_policy(spec, PolicyFilesOnDisk());
}

PolicyPtr make_policy(std::string_view spec, std::span<const PolicyPlugin> plugins) {
  return make_policy(spec, PolicyFilesOnDisk(), plugins);
}

}  // namespace espalier
