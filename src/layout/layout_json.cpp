// SPDX-License-Identifier: Apache-2.0
#include "layout/layout_json.h"

#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/error_text.h"
#include "base/json_fields.h"
#include "base/json_file.h"
#include "base/json_schema.h"
#include "base/limits.h"
#include "espalier/error.h"
#include "layout/cut.h"
#include "layout/policy_defaults.h"

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

GridSize read_pair(const JsonFields& fields, const char* key, int64_t low) {
  const std::vector<int64_t> sizes = fields.integers_at(key, low, limits::kLayoutTokens);
  if (sizes.size() != 2) fields.fail(key, "[rows, columns]");
  return {sizes[0], sizes[1]};
}

int read_index(const JsonFields& fields, const char* key, int64_t low, int fallback) {
  return static_cast<int>(fields.integer(key, low, limits::kLayoutTokens).value_or(fallback));
}

Segment read_segment(const JsonFields& fields) {
  Segment s;
  const std::string name = fields.string_at("kind");
  if (name == "patches") {
    s.kind = Segment::Kind::kPatches;
  } else if (name == "row_break") {
    s.kind = Segment::Kind::kRowBreak;
  } else if (name != "text") {
    fields.fail("kind", "text, patches or row_break");
  }
  s.begin = fields.integer_at("begin", 0, limits::kLayoutTokens);
  s.end = fields.integer_at("end", 0, limits::kLayoutTokens);
  s.example = read_index(fields, "example", -1, -1);
  if (s.kind == Segment::Kind::kText) return s;
  s.image = static_cast<int>(fields.integer_at("image", 0, limits::kLayoutImages - 1));
  if (s.kind == Segment::Kind::kRowBreak) return s;
  s.crop = read_index(fields, "crop", 0, 0);
  s.grid = read_pair(fields, "grid", 1);
  if (fields.has("origin")) s.origin = read_pair(fields, "origin", 0);
  return s;
}

}  // namespace

std::string layout_to_json(const PromptLayout& prompt, const ModelFacts& model, int64_t num_generated) {
  OrderedJson json = {{"schema", kJsonSchema},
                      {"num_tokens", prompt.num_tokens},
                      {"query_example", prompt.query_example},
                      {"model",
                       {{"num_layers", model.num_layers},
                        {"vision_layers", model.vision_layers},
                        {"vision_feature_layer", model.vision_feature_layer}}}};
  if (num_generated > 0) json["num_generated"] = num_generated;
  if (!model.policy_defaults.empty()) json["model"]["policy_defaults"] = to_json(model.policy_defaults);
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
  return parse_layout(read_text_file(file), file.string());
}

RecordedLayout parse_layout(std::string_view text, const std::string& name) {
  const Json json = parse_json(text, name);
  const JsonFields root(json, name);
  auto prompt = std::make_shared<PromptLayout>();
  prompt->query_example = static_cast<int>(root.integer_at("query_example", -1, limits::kLayoutTokens));
  const std::vector<JsonFields> images = root.objects_at("images");
  if (std::ssize(images) > limits::kLayoutImages)
    throw Error(text_of(root.field("images"), ": ", images.size(), " pictures, at most ", limits::kLayoutImages));
  for (const JsonFields& image : images) {
    ImageShape shape{.grid = read_pair(image, "grid", 1), .tiling = {}, .crop_boxes = {}};
    if (image.has("tiling")) shape.tiling = read_pair(image, "tiling", 1);
    prompt->images.push_back(shape);
  }
  for (const JsonFields& segment : root.objects_at("segments")) prompt->segments.push_back(read_segment(segment));
  try {
    finish_prompt_layout(*prompt, at::kCPU);
  } catch (const Error& e) {
    throw Error(name + ": " + e.what());
  }
  if (root.integer_at("num_tokens", 1, limits::kLayoutTokens) != prompt->num_tokens)
    root.fail("num_tokens", text_of(prompt->num_tokens, ", where the segments end"));
  RecordedLayout layout{.prompt = prompt,
                        .model = {},
                        .num_generated = root.integer("num_generated", 0, limits::kLayoutTokens).value_or(0)};
  const JsonFields model = root.object_at("model");
  layout.model.num_layers = static_cast<int>(model.integer_at("num_layers", 1, limits::kLayers));
  layout.model.vision_layers = static_cast<int>(model.integer("vision_layers", 0, limits::kLayers).value_or(0));
  layout.model.vision_feature_layer =
      static_cast<int>(model.integer("vision_feature_layer", -1, limits::kLayers).value_or(0));
  if (const auto defaults = model.object("policy_defaults"))
    layout.model.policy_defaults = read_policy_defaults(*defaults);
  return layout;
}

}  // namespace espalier
