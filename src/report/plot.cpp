// SPDX-License-Identifier: Apache-2.0
#include "report/plot.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

namespace espalier {

namespace {

constexpr double kWidth = 640, kHeight = 230, kLeft = 56, kRight = 14, kTop = 44, kBottom = 46;

// Of the page: --image0 … --image5, --soft, --line, --paper, --ink.
constexpr const char* kStyle =
    ":root{--paper:#fbfaf7;--ink:#24261f;--soft:#6d7066;--line:#e3e1d8;--line0:#3f7d4e;--line1:#3a6ea5;--line2:#b4532a;"
    "--line3:#7a5aa6;--line4:#a8842c;--line5:#2f8f8b}\n"
    "@media "
    "(prefers-color-scheme:dark){:root{--paper:#191b17;--ink:#ecebe2;--soft:#a3a697;--line:#363a31;--line0:#74b684;"
    "--line1:#7eaede;--line2:#e08a5f;--line3:#b39bdc;--line4:#d9b862;--line5:#6cc7c3}}\n"
    "text{font:13px system-ui,sans-serif;fill:var(--soft)}.title{font-weight:600;fill:var(--ink)}.name{fill:var(--ink)}"
    ".axis{stroke:var(--line)}.level{stroke:var(--soft)}";

std::string text_of(double value, const char* pattern = "%.1f") {
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), pattern, value);
  return text.data();
}

std::string escaped(const std::string& words) {
  std::string out;
  for (const char c : words) out += c == '&' ? "&amp;" : c == '<' ? "&lt;" : std::string(1, c);
  return out;
}

size_t columns(const std::string& text) {  // of UTF-8
  return static_cast<size_t>(std::ranges::count_if(text, [](char c) { return (c & 0xC0) != 0x80; }));
}

std::string ink_of(size_t number) {
  return "var(--line" + std::to_string(number % kLinesPerBlock) + ")";
}

class Drawing {
 public:
  void line(double x0, double y0, double x1, double y1, const std::string& style) {
    text_ += "<line x1=\"" + text_of(x0) + "\" y1=\"" + text_of(y0) + "\" x2=\"" + text_of(x1) + "\" y2=\"" +
             text_of(y1) + "\" " + style + "/>\n";
  }
  void path(const std::string& steps, size_t number) {
    text_ += "<path d=\"" + steps + "\" fill=\"none\" stroke-width=\"2\" style=\"stroke:" + ink_of(number) + "\"/>\n";
  }
  // A dot, a square or a diamond: neighbours differ in more than colour.
  void mark(double x, double y, size_t number) {
    const std::string fill = "style=\"fill:" + ink_of(number) + "\"/>\n";
    if (number % 3 == 0) {
      text_ += "<circle cx=\"" + text_of(x) + "\" cy=\"" + text_of(y) + "\" r=\"3.2\" " + fill;
      return;
    }
    const std::string turn = number % 3 == 1 ? "" : "transform=\"rotate(45 " + text_of(x) + " " + text_of(y) + ")\" ";
    text_ += "<rect x=\"" + text_of(x - 2.8) + "\" y=\"" + text_of(y - 2.8) + "\" width=\"5.6\" height=\"5.6\" " +
             turn + fill;
  }
  void words(double x, double y, const std::string& words, const std::string& style = "") {
    text_ += "<text x=\"" + text_of(x) + "\" y=\"" + text_of(y) + "\" " + style + ">" + escaped(words) + "</text>\n";
  }
  std::string finish(double height) && {
    const std::string size = text_of(kWidth, "%.0f") + " " + text_of(height, "%.0f");
    return "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 " + size + "\">\n<style>" + kStyle +
           "</style>\n<rect width=\"100%\" height=\"100%\" style=\"fill:var(--paper)\"/>\n" + text_ + "</svg>\n";
  }

 private:
  std::string text_;
};

double largest(const PlotPanel& panel, double PlotPoint::*coordinate) {
  double most = 0;
  for (const PlotLine& line : panel.lines)
    for (const PlotPoint& point : line.points)
      if (std::isfinite(point.*coordinate)) most = std::max(most, point.*coordinate);
  return most > 0 ? most : 1;
}

// With its upper left corner at (x, y).
void draw_panel(Drawing& out, double x, double y, double width, const PlotPanel& panel) {
  const double w = width - kLeft - kRight, h = kHeight - kTop - kBottom;
  const double x_end = largest(panel, &PlotPoint::x);
  double y_end = panel.y_end.value_or(largest(panel, &PlotPoint::y));
  std::vector<double> ticks = round_ticks(y_end);
  if (!panel.y_end && ticks.back() < y_end) {  // so that the highest point lies below a line
    ticks.push_back(ticks.back() + ticks[1]);
    y_end = ticks.back();
  }
  const auto px = [&](double v) { return x + kLeft + w * v / x_end; };
  const auto py = [&](double v) { return y + kTop + h * (1 - v / y_end); };
  out.words(x + kLeft, y + 18, panel.title, "class=\"title\"");
  out.words(x + kLeft, y + 35, panel.y_label);
  for (const double tick : ticks) {
    out.line(px(0), py(tick), px(x_end), py(tick), "class=\"axis\"");
    out.words(x + kLeft - 6, py(tick) + 4.5, text_of(tick, "%.10g"), "text-anchor=\"end\"");
  }
  for (const double tick : round_ticks(x_end))
    out.words(px(tick), py(0) + 17, text_of(tick, "%.10g"), "text-anchor=\"middle\"");
  out.words(px(x_end / 2), py(0) + 36, panel.x_label, "text-anchor=\"middle\"");
  for (const PlotLevel& level : panel.levels)
    out.line(px(0), py(level.y), px(x_end), py(level.y),
             std::string("class=\"level\" stroke-dasharray=\"") + (level.is_dotted ? "1 4\"" : "6 4\""));
  for (const PlotLine& line : panel.lines) {
    std::string steps;
    for (const PlotPoint& p : line.points)
      if (std::isfinite(p.y)) steps += (steps.empty() ? "M" : "L") + text_of(px(p.x)) + " " + text_of(py(p.y));
    if (line.points.size() > 1 && !steps.empty()) out.path(steps, line.number);
    for (const PlotPoint& p : line.points) {
      if (p.interval)
        out.line(px(p.x), py(p.interval->first), px(p.x), py(p.interval->second),
                 "stroke-opacity=\"0.45\" style=\"stroke:" + ink_of(line.number) + "\"");
      if (line.has_marks && std::isfinite(p.y)) out.mark(px(p.x), py(p.y), line.number);
    }
  }
}

// Side by side, in as many rows as they need. Returns where the next thing may begin.
double draw_legend(Drawing& out, const std::vector<std::string>& names, double y) {
  double x = kLeft;
  for (size_t i = 0; i < names.size(); ++i) {
    const double needed = 30 + 7.2 * static_cast<double>(columns(names[i]));
    if (x > kLeft && x + needed > kWidth) x = kLeft, y += 20;
    out.mark(x + 4, y + 9.5, i);
    out.words(x + 14, y + 14, names[i], "class=\"name\"");
    x += needed;
  }
  return names.empty() ? y : y + 26;
}

}  // namespace

std::vector<double> round_ticks(double end, int count) {
  const double rough = end / count, power = std::pow(10.0, std::floor(std::log10(rough)));
  double step = 10 * power;
  for (const double multiple : {5.0, 2.0, 1.0})
    if (multiple * power >= rough * (1 - 1e-9)) step = multiple * power;
  std::vector<double> ticks;
  for (int i = 0; i * step <= end * (1 + 1e-9); ++i) ticks.push_back(i * step);
  return ticks;
}

std::string plot_svg(const std::vector<PlotBlock>& blocks, const std::string& caption) {
  Drawing out;
  double y = 12;
  for (const PlotBlock& block : blocks) {
    y = draw_legend(out, block.legend, y);
    const size_t in_row = std::min<size_t>(2, block.panels.size());
    const double width = kWidth / static_cast<double>(std::max<size_t>(1, in_row));
    for (size_t i = 0; i < block.panels.size(); ++i) {
      const size_t row = i / in_row, column = i % in_row;
      draw_panel(out, width * static_cast<double>(column), y + kHeight * static_cast<double>(row), width,
                 block.panels[i]);
    }
    const size_t rows = in_row > 0 ? (block.panels.size() + in_row - 1) / in_row : 0;
    if (rows > 0) y += kHeight * static_cast<double>(rows) + 14;
  }
  if (!caption.empty()) out.words(kLeft, y + 8, caption);
  return std::move(out).finish(y + 22);
}

}  // namespace espalier
