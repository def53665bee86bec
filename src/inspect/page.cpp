// SPDX-License-Identifier: Apache-2.0
#include "inspect/page.h"

#include <algorithm>
#include <cstddef>
#include <nlohmann/json.hpp>
#include <string_view>

#include "espalier/error.h"
#include "inspect/page_html.h"
#include "io/image_encode.h"
#include "runtime/points_json.h"
#include "runtime/result_json.h"

namespace espalier {

namespace {

using Json = nlohmann::ordered_json;

std::string base64(std::span<const std::byte> bytes) {
  static constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  text.reserve((bytes.size() + 2) / 3 * 4);
  for (size_t i = 0; i < bytes.size(); i += 3) {
    const size_t count = std::min<size_t>(3, bytes.size() - i);
    uint32_t group = 0;
    for (size_t j = 0; j < 3; ++j) group = group << 8 | (j < count ? std::to_integer<uint32_t>(bytes[i + j]) : 0);
    for (size_t j = 0; j < 4; ++j) text += j <= count ? kDigits[group >> (18 - 6 * j) & 63] : '=';
  }
  return text;
}

Json pictures_json(const InspectedPrompt& prompt, const PromptLayout& layout) {
  Json pictures = Json::array();
  for (size_t i = 0; i < prompt.images.size(); ++i)
    pictures.push_back({{"uri", "data:image/png;base64," + base64(encode_png(*prompt.images[i].image))},
                        {"example", layout.example_of_image(static_cast<int>(i))}});
  return pictures;
}

template <typename T = int64_t>
std::vector<T> to_vector(const at::Tensor& t) {
  const at::Tensor host = t.cpu().contiguous();
  return {host.const_data_ptr<T>(), host.const_data_ptr<T>() + host.numel()};
}

Json box_json(const PromptLayout& layout, const Segment& segment, int64_t token) {
  if (segment.kind != Segment::Kind::kPatches) return nullptr;
  const std::optional<PixelBox> box = layout.pixel_box(token);
  if (!box) throw Error("inspect: token " + std::to_string(token) + " has no place on its picture");
  return {box->x0, box->y0, box->x1, box->y1};
}

Json layout_json(const PromptLayout& layout) {
  Json boxes = Json::array();
  for (const Segment& segment : layout.segments)
    for (int64_t t = segment.begin; t < segment.end; ++t) boxes.push_back(box_json(layout, segment, t));
  Json positions = Json::array();
  if (layout.position_id.dim() == 1) {
    positions.push_back(to_vector(layout.position_id));
  } else {
    for (int64_t axis = 0; axis < layout.position_id.size(0); ++axis)
      positions.push_back(to_vector(layout.position_id.select(0, axis)));
  }
  return {{"kind", to_vector(layout.kind)},    {"image", to_vector(layout.image)},     {"crop", to_vector(layout.crop)},
          {"row", to_vector(layout.grid_row)}, {"column", to_vector(layout.grid_col)}, {"box", boxes},
          {"position_id", positions}};
}

// Of the same prompt: then only the shapes of its pictures can differ.
bool is_same(const PromptLayout& a, const PromptLayout& b) {
  return std::ranges::equal(a.images, b.images, [](const ImageShape& x, const ImageShape& y) {
    return x.grid == y.grid && x.tiling == y.tiling;
  });
}

Json run_json(const InspectedRun& run, size_t layout) {
  Json points = Json::array();
  for (const PointTrace& point : run.result.points) points.push_back(to_json(point));
  return {{"policy", run.policy},    {"layout", layout}, {"text", run.result.text},
          {"kept", run.result.kept}, {"points", points}, {"stats", to_json(run.result.stats)}};
}

}  // namespace

std::string inspect_page(const InspectedPrompt& prompt, std::span<const InspectedRun> runs) {
  const PromptLayout& first = *runs.front().layout;
  Json json = {{"model", prompt.model},
               {"version", prompt.version},
               {"prompt", runs.front().result.prompt},
               {"query_example", first.query_example},
               {"pictures", pictures_json(prompt, first)},
               {"layouts", Json::array()},
               {"runs", Json::array()}};
  std::vector<const PromptLayout*> layouts;
  for (const InspectedRun& run : runs) {
    const auto at = std::ranges::find_if(layouts, [&](const auto* other) { return is_same(*other, *run.layout); });
    const size_t index = at - layouts.begin();
    if (at == layouts.end()) {
      layouts.push_back(run.layout.get());
      json["layouts"].push_back(layout_json(*run.layout));
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
