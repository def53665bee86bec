// SPDX-License-Identifier: Apache-2.0
#include "training/atp_plot.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/json_file.h"
#include "base/output_file.h"
#include "espalier/error.h"

namespace espalier {

namespace {

using Json = nlohmann::json;
using Curve = std::map<int64_t, double>;  // by step

struct Series {
  std::string name, colour;
  Curve points;
};

struct Panel {
  std::string title;
  std::vector<Series> series;
};

// Of lines that report steps, or of those that evaluate.
Curve curve_of(const std::vector<Json>& lines, const std::string& key, bool of_evaluations) {
  Curve curve;
  for (const Json& line : lines)
    if (line.contains("step") && line.contains(key) && line.contains("evaluation") == of_evaluations &&
        !line.contains("event"))
      curve[line["step"].get<int64_t>()] = line[key].get<double>();
  return curve;
}

Curve accuracy_of(const std::vector<Json>& lines) {
  Curve curve;
  for (const Json& line : lines)
    if (line.contains("evaluation"))
      curve[line["step"].get<int64_t>()] = line["evaluation"]["answers"]["accuracy"].get<double>();
  return curve;
}

std::vector<Json> read_log(const std::filesystem::path& log) {
  const std::string text = read_text_file(log);
  std::vector<Json> lines;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    lines.push_back(parse_json(std::string_view(text).substr(begin, end - begin),
                               log.string() + " line " + std::to_string(lines.size() + 1)));
    begin = end + 1;
  }
  return lines;
}

constexpr double kWidth = 720, kHeight = 190, kLeft = 56, kRight = 170, kTop = 26, kBottom = 26;

std::string number(double value) {
  std::array<char, 32> text;
  std::snprintf(text.data(), text.size(), "%.4g", value);
  return text.data();
}

std::string text_at(double x, double y, const std::string& anchor, const std::string& text) {
  return "<text x=\"" + number(x) + "\" y=\"" + number(y) + "\" text-anchor=\"" + anchor + "\">" + text + "</text>\n";
}

std::string draw(const Panel& panel, double top, int64_t last_step) {
  double high = 0;
  for (const Series& s : panel.series)
    for (const auto& [step, value] : s.points)
      if (std::isfinite(value)) high = std::max(high, value);
  if (high <= 0) high = 1;
  const double bottom = top + kHeight - kBottom, width = kWidth - kLeft - kRight, height = kHeight - kTop - kBottom;
  const auto x = [&](int64_t step) {
    return kLeft + width * static_cast<double>(step) / static_cast<double>(last_step);
  };
  const auto y = [&](double value) { return bottom - height * value / high; };
  std::string svg = text_at(kLeft, top + 14, "start", panel.title);
  svg += "<path class=\"axis\" d=\"M" + number(kLeft) + " " + number(bottom - height) + "V" + number(bottom) + "H" +
         number(kLeft + width) + "\"/>\n";
  svg += text_at(kLeft - 6, bottom + 4, "end", "0") + text_at(kLeft - 6, bottom - height + 8, "end", number(high));
  svg += text_at(kLeft + width, bottom + 16, "end", "step " + std::to_string(last_step));
  double legend = top + kTop + 10;
  for (const Series& s : panel.series) {
    if (s.points.empty()) continue;
    std::string path;
    for (const auto& [step, value] : s.points)
      if (std::isfinite(value)) path += (path.empty() ? "M" : "L") + number(x(step)) + " " + number(y(value));
    svg += "<path fill=\"none\" stroke=\"" + s.colour + "\" d=\"" + path + "\"/>\n";
    svg += "<g fill=\"" + s.colour + "\">" + text_at(kLeft + width + 10, legend, "start", s.name) + "</g>\n";
    legend += 15;
  }
  return svg;
}

}  // namespace

void write_atp_plot(const std::filesystem::path& svg, const std::filesystem::path& log, double target_tokens) {
  const std::vector<Json> lines = read_log(log);
  int64_t last_step = 1;
  for (const Json& line : lines)
    if (line.contains("step")) last_step = std::max(last_step, line["step"].get<int64_t>());
  const Panel panels[] = {{"loss",
                           {{"sum", "#444", curve_of(lines, "loss", false)},
                            {"of the answers", "#1b6ca8", curve_of(lines, "loss_answers", false)}}},
                          {"image tokens of a picture, mean over layers",
                           {{"soft masks", "#1b6ca8", curve_of(lines, "soft_tokens", false)},
                            {"tokens removed", "#b5481d", curve_of(lines, "hard_tokens", true)},
                            {"target", "#999", {{0, target_tokens}, {last_step, target_tokens}}}}},
                          {"exact answers, tokens removed", {{"accuracy", "#b5481d", accuracy_of(lines)}}}};
  std::string text = "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"" + number(kWidth) + "\" height=\"" +
                     number(3 * kHeight) + "\" font-family=\"sans-serif\" font-size=\"12\">\n" +
                     "<style>.axis{fill:none;stroke:#444}path{stroke-width:1.5}</style>\n" +
                     "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n";
  double top = 0;
  for (const Panel& panel : panels) {
    text += draw(panel, top, last_step);
    top += kHeight;
  }
  OutputFile out(svg);
  out.write(text + "</svg>\n");
  out.commit();
}

}  // namespace espalier
