// SPDX-License-Identifier: Apache-2.0
#include "training/atp_plot.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "base/json_file.h"
#include "base/output_file.h"
#include "espalier/error.h"
#include "report/plot.h"

namespace espalier {

namespace {

using Json = nlohmann::json;
using Curve = std::map<int64_t, double>;  // by step

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

PlotLine line_of(size_t number, const Curve& curve) {
  PlotLine line{.number = number, .has_marks = false};
  for (const auto& [step, value] : curve) line.points.push_back({static_cast<double>(step), value});
  return line;
}

PlotBlock block_of(const std::string& title, const std::vector<std::pair<std::string, Curve>>& curves) {
  PlotBlock block{.panels = {{.title = title, .x_label = "step"}}};
  for (const auto& [name, curve] : curves) {
    block.panels[0].lines.push_back(line_of(block.legend.size(), curve));
    block.legend.push_back(name);
  }
  return block;
}

}  // namespace

void write_atp_plot(const std::filesystem::path& svg, const std::filesystem::path& log, double target_tokens) {
  const std::vector<Json> lines = read_log(log);
  PlotBlock tokens = block_of("image tokens of a picture, mean over layers",
                              {{"soft masks", curve_of(lines, "soft_tokens", false)},
                               {"tokens removed", curve_of(lines, "hard_tokens", true)}});
  tokens.panels[0].levels.push_back({target_tokens});
  PlotBlock answers = block_of("exact answers, tokens removed", {{"accuracy", accuracy_of(lines)}});
  answers.panels[0].y_end = 1;
  OutputFile out(svg);
  out.write(plot_svg({block_of("loss", {{"sum", curve_of(lines, "loss", false)},
                                        {"of the answers", curve_of(lines, "loss_answers", false)}}),
                      std::move(tokens), std::move(answers)},
                     "Dashed: the target."));
  out.commit();
}

}  // namespace espalier
