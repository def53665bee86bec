// SPDX-License-Identifier: Apache-2.0
#include "recording/policy_files.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error_text.h"
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

int64_t count_at(const JsonFields& fields, const char* key, int64_t low) {
  return fields.integer_at(key, low, kMost);
}

template <typename E, size_t n>
E word_at(const JsonFields& fields, const char* key, const Words<E, n>& words) {
  const std::string value = fields.string_at(key);
  std::string known;
  for (const auto& [word, meaning] : words) {
    if (value == word) return meaning;
    known += (known.empty() ? "" : ", ") + std::string(word);
  }
  fields.fail(key, "one of " + known);
}

void check_method(const JsonFields& fields, std::string_view method) {
  const Json* value = fields.find("method");
  if (!value || *value != method) fields.fail("method", "\"" + std::string(method) + "\"");
}

// ---- ATP modules ----

std::filesystem::path settings_file(const std::filesystem::path& weights) {
  return std::filesystem::path(weights).replace_extension(".json");
}

AtpSettings read_settings(const std::filesystem::path& path, int64_t& hidden_size) {
  const std::string file = path.string();
  const Json json = read_json_file(path);
  const JsonFields fields(json, file);
  fields.integer_at("format", 1, 1);
  AtpSettings settings;
  for (const int64_t layer : fields.integers_at("layers", 1, kMost)) settings.layers.push_back(static_cast<int>(layer));
  if (settings.layers.empty() || !std::ranges::is_sorted(settings.layers, std::ranges::less_equal{}))
    fields.fail("layers", "layers in ascending order");
  const std::vector<int64_t> grid = fields.integers_at("grid", 1, 4096);
  if (grid.size() != 2) fields.fail("grid", "two integers, rows and columns");
  settings.grid = {grid[0], grid[1]};
  hidden_size = count_at(fields, "hidden_size", 1);
  settings.strides = fields.integers_at("strides", 1, kMost);
  if (settings.strides.empty()) fields.fail("strides", "at least one stride");
  settings.lambda_sample = fields.number_at("lambda_sample");
  settings.norm = word_at(fields, "norm", kNorms);
  settings.head_input = word_at(fields, "head_input", kHeadInputs);
  settings.activation = word_at(fields, "activation", kActivations);
  settings.min_keep = count_at(fields, "min_keep", 0);
  // Files may leave these out: both.
  if (fields.find("strategy")) settings.strategy = word_at(fields, "strategy", kStrategies);
  if (fields.find("scores")) settings.scores = word_at(fields, "scores", kScores);
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
    throw Error(where + ": " + name + ": expected shape " + list_text(shape) + ", got " + list_text(view.shape));
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
      throw Error(file + ": tensor " + in_quotes(name) + " belongs to none of the " +
                  std::to_string(weights.modules.size()) + " modules of " + settings_file(file).string());
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
  OutputFile weights_out(file);
  write_safetensors(weights_out, tensors);
  commit({&weights_out, &settings_out});
}

// ---- recipes ----

FitpruneRecipe PolicyFilesOnDisk::fitprune_recipe(const std::string& file) const {
  const Json json = read_json_file(file);
  const JsonFields fields(json, file);
  check_method(fields, "fitprune");
  const int64_t layers = count_at(fields, "layers", 1);
  FitpruneRecipe recipe{.name = file, .num_visual = count_at(fields, "n_visual", 1), .deleted = {}};
  recipe.deleted = fields.integers_at("delete", 0, kMost);
  if (std::ssize(recipe.deleted) != layers) fields.fail("delete", std::to_string(layers) + " counts, one a layer");
  int64_t sum = 0;
  for (const int64_t count : recipe.deleted) sum += count;
  if (sum > recipe.num_visual)
    fields.fail("delete", "counts that add up to n_visual=" + std::to_string(recipe.num_visual) + " or less");
  return recipe;
}

VtwRecipe PolicyFilesOnDisk::vtw_recipe(const std::string& file) const {
  const Json json = read_json_file(file);
  const JsonFields fields(json, file);
  check_method(fields, "vtw");
  const int64_t layers = count_at(fields, "layers", 1);
  return {file, static_cast<int>(layers), static_cast<int>(fields.integer_at("layer", 0, layers))};
}

// ---- kept sets ----

namespace {

std::vector<int64_t> ascending(const JsonFields& fields, const char* key) {
  std::vector<int64_t> list = fields.integers_at(key, 0, int64_t{1} << 40);
  const auto behind = std::ranges::adjacent_find(list, std::ranges::greater_equal{});
  if (behind == list.end()) return list;
  throw Error(text_of(fields.field(key), ": expected source indices in ascending order, got ", behind[0], " before ",
                      behind[1], " at place ", behind - list.begin()));
}

// Vectors that entered, from the safetensors file beside the result.
void read_merged(const JsonFields& fields, const std::string& file, KeptPoint& point) {
  const Json* name = fields.find("merged");
  if (!name) return;
  if (!name->is_string() || point.point.site == Site::kCache)
    fields.fail("merged", "a tensor's name, not at the cache");
  point.sources = fields.integers_at("merged_source", -1, int64_t{1} << 40);
  const char* whose = fields.find("merged_position_from") ? "merged_position_from" : "merged_source";
  point.position_from = fields.integers_at(whose, -1, int64_t{1} << 40);
  if (point.position_from.size() != point.sources.size() || std::ranges::count(point.position_from, -1) > 0)
    fields.fail("merged_position_from", "for each of merged_source the token whose position it takes");
  const std::string beside = std::filesystem::path(file).replace_extension(".safetensors").string();
  const SafetensorsFile tensors = SafetensorsFile::open(beside);
  const auto found = tensors.tensors().find(name->get<std::string>());
  const auto rows = std::ssize(point.sources);
  if (found == tensors.tensors().end() || found->second.shape.size() != 2 || found->second.shape[0] != rows)
    throw Error(beside + ": expected a tensor " + in_quotes(name->get<std::string>()) + " with " +
                std::to_string(rows) + " rows");
  point.vectors = read_tensor(tensors, beside, name->get<std::string>(), found->second.shape);
}

KeptPoint kept_point(const JsonFields& fields, const std::string& file) {
  KeptPoint point;
  point.point.site = word_at(fields, "site", kSites);
  if (point.point.site >= Site::kBeforeLayer) point.point.layer = static_cast<int>(count_at(fields, "layer", 0));
  if (point.point.site != Site::kCache) {
    point.kept = ascending(fields, "kept");
    read_merged(fields, file, point);
    return point;
  }
  const Json* heads = fields.find("kept");
  if (!heads || !heads->is_array() || heads->empty()) fields.fail("kept", "one list for each KV head");
  for (const Json& head : *heads) {
    const Json one = {{"kept", head}};
    const std::string place = fields.place();
    point.kept_per_head.push_back(ascending(JsonFields(one, place), "kept"));
  }
  return point;
}

}  // namespace

KeptSets PolicyFilesOnDisk::kept_sets(const std::string& file) const {
  const Json json = read_json_file(file);
  const JsonFields fields(json, file);
  const std::vector<JsonFields> points = fields.objects_at("points");
  KeptSets sets{.file = file, .points = {}};
  for (size_t i = 0; i < points.size(); ++i) {
    if (points[i].has("generated")) continue;  // a set of one answer's, while it was made
    KeptPoint point = kept_point(points[i], file);
    // Policies of a pipeline may act at one point; the last of them says what is alive behind it.
    if (!sets.points.empty() && sets.points.back().point == point.point) {
      if (sets.points.back().vectors.defined() || point.vectors.defined())
        throw Error(points[i].place() + ": of two sets at one point none may have merged vectors");
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
