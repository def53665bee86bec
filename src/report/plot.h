// SPDX-License-Identifier: Apache-2.0
// Line plots as SVG, in the look of the inspect page (src/inspect/page.html): its colours, light and dark, round ticks,
// few lines in a panel. bench/report.py draws with the same constants.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace espalier {

// Lines of a panel that the eye can still follow: whoever has more makes several blocks.
inline constexpr size_t kLinesPerBlock = 6;

struct PlotPoint {
  double x = 0, y = 0;
  std::optional<std::pair<double, double>> interval = {};  // of y
};

struct PlotLine {
  size_t number = 0;  // in the legend of its block: says how it looks
  std::vector<PlotPoint> points = {};
  bool has_marks = true;
};

// A value that holds everywhere in a panel.
struct PlotLevel {
  double y = 0;
  bool is_dotted = false;  // else dashed
};

struct PlotPanel {
  std::string title = {}, x_label = {}, y_label = {};
  std::vector<PlotLine> lines = {};
  std::vector<PlotLevel> levels = {};
  std::optional<double> y_end = {};  // both axes begin at 0; this one ends here, or at the next round number
};

// Panels with one legend.
struct PlotBlock {
  std::vector<std::string> legend = {};
  std::vector<PlotPanel> panels = {};
};

// Two panels in a row, 640 units wide in all: its text can be read at 500 pixels. `caption` stands below.
std::string plot_svg(const std::vector<PlotBlock>& blocks, const std::string& caption);

// 0, and multiples of 1, 2 or 5 times a power of ten up to `end`, about `count` of them. `end` is positive.
std::vector<double> round_ticks(double end, int count = 5);

}  // namespace espalier
