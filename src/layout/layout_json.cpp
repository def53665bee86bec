// SPDX-License-Identifier: Apache-2.0
#include "layout/layout_json.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/json_file.h"
#include "espalier/error.h"
#include "layout/cut.h"

namespace espalier {

namespace {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

const char* name_of(Segment::Kind kind) {
  switch (kind) {
    case Segment::Kind::kText:
      return "text";
    case Segment::Kind::kPatches:
      return "patches";
    case Segment::Kind::kRowBreak:
      return "row_break";
  }
  return "";
}

OrderedJson to_json(const Segment& s) {
  OrderedJson json = {{"kind", name_of(s.kind)}, {"begin", s.begin}, {"end", s.end}};
  if (s.kind != Segment::Kind::kText) json["image"] = s.image;
  if (s.kind == Segment::Kind::kPatches) json["crop"] = s.crop;
  json["example"] = s.example;
  if (s.kind == Segment::Kind::kPatches) {
    json["grid"] = {s.grid.rows, s.grid.cols};
    if (s.origin != GridSize{}) json["origin"] = {s.origin.rows, s.origin.cols};
  }
  return json;
}

// Far above any sequence, and small enough that products and memory stay harmless whatever a file says.
constexpr int64_t kMost = int64_t{1} << 24;

// One object of the file with strict fields; `where` opens every message.
struct Fields {
  const Json& json;
  std::string where;

  int64_t integer(const char* key, int64_t low) const {
    const auto found = json.find(key);
    if (found == json.end() || !is_between(*found, low)) fail(key, "an integer from " + std::to_string(low));
    return found->get<int64_t>();
  }
  int64_t integer(const char* key, int64_t low, int64_t fallback) const {
    return json.contains(key) ? integer(key, low) : fallback;
  }
  GridSize pair(const char* key, int64_t low) const {
    const auto found = json.find(key);
    if (found == json.end() || !found->is_array() || found->size() != 2 || !is_between((*found)[0], low) ||
        !is_between((*found)[1], low))
      fail(key, "[rows, columns], each from " + std::to_string(low));
    return {(*found)[0].get<int64_t>(), (*found)[1].get<int64_t>()};
  }
  const Json& list(const char* key) const {
    const auto found = json.find(key);
    if (found == json.end() || !found->is_array()) fail(key, "a list");
    return *found;
  }
  static bool is_between(const Json& value, int64_t low) {
    return value.is_number_integer() && value.get<int64_t>() >= low && value.get<int64_t>() <= kMost;
  }
  [[noreturn]] void fail(const std::string& key, const std::string& expected) const {
    throw Error(where + ": " + key + ": expected " + expected + ", got " +
                (json.contains(key) ? json.at(key).dump() : "nothing"));
  }
};

Fields object(const Json& json, const std::string& where) {
  if (!json.is_object()) throw Error(where + ": expected an object, got " + json.dump());
  return {json, where};
}

Segment read_segment(const Fields& f) {
  Segment s;
  const auto kind = f.json.find("kind");
  if (kind == f.json.end() || !kind->is_string()) f.fail("kind", "text, patches or row_break");
  const std::string name = kind->get<std::string>();
  if (name == "patches") {
    s.kind = Segment::Kind::kPatches;
  } else if (name == "row_break") {
    s.kind = Segment::Kind::kRowBreak;
  } else if (name != "text") {
    f.fail("kind", "text, patches or row_break");
  }
  s.begin = f.integer("begin", 0);
  s.end = f.integer("end", 0);
  s.example = static_cast<int>(f.integer("example", -1, -1));
  if (s.kind == Segment::Kind::kText) return s;
  s.image = static_cast<int>(f.integer("image", 0));
  if (s.kind == Segment::Kind::kRowBreak) return s;
  s.crop = static_cast<int>(f.integer("crop", 0, 0));
  s.grid = f.pair("grid", 1);
  if (f.json.contains("origin")) s.origin = f.pair("origin", 0);
  return s;
}

}  // namespace

std::string layout_to_json(const PromptLayout& prompt, const ModelFacts& model) {
  OrderedJson json = {{"num_tokens", prompt.num_tokens},
                      {"query_example", prompt.query_example},
                      {"model",
                       {{"num_layers", model.num_layers},
                        {"vision_layers", model.vision_layers},
                        {"vision_feature_layer", model.vision_feature_layer}}}};
  json["images"] = OrderedJson::array();
  for (const ImageShape& image : prompt.images) {
    OrderedJson entry = {{"grid", {image.grid.rows, image.grid.cols}}};
    if (image.tiling) entry["tiling"] = {image.tiling->rows, image.tiling->cols};
    json["images"].push_back(entry);
  }
  json["segments"] = OrderedJson::array();
  for (const Segment& s : prompt.segments) json["segments"].push_back(to_json(s));
  return json.dump(1) + "\n";
}

RecordedLayout read_layout(const std::filesystem::path& file) {
  const std::string name = file.string();
  const Json json = read_json_file(file);
  const Fields root = object(json, name);
  auto prompt = std::make_shared<PromptLayout>();
  prompt->query_example = static_cast<int>(root.integer("query_example", -1));
  for (const Json& entry : root.list("images")) {
    const Fields image = object(entry, name + ": images[" + std::to_string(prompt->images.size()) + "]");
    ImageShape shape{.grid = image.pair("grid", 1), .tiling = {}, .crop_boxes = {}};
    if (entry.contains("tiling")) shape.tiling = image.pair("tiling", 1);
    prompt->images.push_back(shape);
  }
  for (const Json& entry : root.list("segments"))
    prompt->segments.push_back(
        read_segment(object(entry, name + ": segments[" + std::to_string(prompt->segments.size()) + "]")));
  try {
    finish_prompt_layout(*prompt, at::kCPU);
  } catch (const Error& e) {
    throw Error(name + ": " + e.what());
  }
  if (const int64_t expected = root.integer("num_tokens", 1); prompt->num_tokens != expected)
    throw Error(name + ": num_tokens is " + std::to_string(expected) + ", but the segments end at " +
                std::to_string(prompt->num_tokens));
  RecordedLayout layout{.prompt = prompt, .model = {}};
  if (!json.contains("model")) root.fail("model", "an object");
  const Fields model = object(json.at("model"), name + ": model");
  layout.model.num_layers = static_cast<int>(model.integer("num_layers", 1));
  layout.model.vision_layers = static_cast<int>(model.integer("vision_layers", 0, 0));
  layout.model.vision_feature_layer = static_cast<int>(model.integer("vision_feature_layer", -1, 0));
  return layout;
}

}  // namespace espalier
