// SPDX-License-Identifier: Apache-2.0
#include "inspect/page.h"

#include <algorithm>
#include <cstddef>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string_view>

#include "base/base64.h"
#include "espalier/error.h"
#include "inspect/page_html.h"
#include "layout/points_json.h"
#include "pictures/image_encode.h"
#include "runtime/result_json.h"

namespace espalier {

namespace {

using Json = nlohmann::ordered_json;

int example_of(const PromptTrace& prompt, size_t image) {
  const auto token = std::ranges::find(prompt.tokens, static_cast<int>(image), &TokenTrace::image);
  return token == prompt.tokens.end() ? -1 : token->example;
}

Json pictures_json(const InspectedPrompt& prompt, const PromptTrace& trace) {
  Json pictures = Json::array();
  for (size_t i = 0; i < prompt.images.size(); ++i)
    pictures.push_back({{"uri", "data:image/png;base64," + base64(encode_png(*prompt.images[i].image))},
                        {"example", example_of(trace, i)}});
  return pictures;
}

Json box_json(const TokenTrace& token, size_t index) {
  if (token.kind != TokenTrace::Kind::kPatch) return nullptr;
  if (!token.box) throw Error("inspect: token " + std::to_string(index) + " has no place on its picture");
  return {token.box->x0, token.box->y0, token.box->x1, token.box->y1};
}

Json layout_json(const PromptTrace& prompt) {
  Json json;
  for (const char* name : {"kind", "image", "crop", "row", "column", "box"}) json[name] = Json::array();
  for (size_t t = 0; t < prompt.tokens.size(); ++t) {
    const TokenTrace& token = prompt.tokens[t];
    json["kind"].push_back(static_cast<int>(token.kind));
    json["image"].push_back(token.image);
    json["crop"].push_back(token.crop);
    json["row"].push_back(token.row);
    json["column"].push_back(token.column);
    json["box"].push_back(box_json(token, t));
  }
  json["position_id"] = prompt.position_id;
  return json;
}

Json run_json(const InspectedRun& run, size_t layout) {
  Json points = Json::array();
  for (const PointTrace& point : run.points) {
    points.push_back(to_json(point));
    points.back()["tokens_per_image"] = point.tokens_per_image;
    // New tokens are among them.
    points.back()["merges"] =
        point.kept_per_head.empty() &&
        std::reduce(point.tokens_per_image.begin(), point.tokens_per_image.end()) > std::ssize(point.kept);
  }
  return {{"policy", run.policy},    {"layout", layout}, {"text", run.result.text},
          {"kept", run.result.kept}, {"points", points}, {"stats", to_json(run.result.stats)}};
}

}  // namespace

std::string inspect_page(const InspectedPrompt& prompt, std::span<const InspectedRun> runs) {
  const PromptTrace& first = runs.front().prompt;
  Json json = {{"model", prompt.model},
               {"version", prompt.version},
               {"prompt", runs.front().result.prompt},
               {"query_example", first.query_example},
               {"pictures", pictures_json(prompt, first)},
               {"layouts", Json::array()},
               {"runs", Json::array()}};
  if (prompt.answer) json["answer"] = *prompt.answer;
  std::vector<const PromptTrace*> layouts;  // of one prompt: only the shapes of its pictures can differ
  for (const InspectedRun& run : runs) {
    const auto at =
        std::ranges::find_if(layouts, [&](const PromptTrace* other) { return other->pictures == run.prompt.pictures; });
    const size_t index = at - layouts.begin();
    if (at == layouts.end()) {
      layouts.push_back(&run.prompt);
      json["layouts"].push_back(layout_json(run.prompt));
    }
    json["runs"].push_back(run_json(run, index));
  }
  // Inside a script element a "</" of the prompt would end it.
  std::string data = to_line(json);
  for (size_t at = 0; (at = data.find("</", at)) != std::string::npos; at += 3) data.insert(at + 1, "\\");
  std::string page(kPageHtml);
  static constexpr std::string_view kPlace = "/*RUNS*/";
  return page.replace(page.find(kPlace), kPlace.size(), data);
}

}  // namespace espalier
