// SPDX-License-Identifier: Apache-2.0
#include "eval/report.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "base/json_schema.h"
#include "pruning/policy_spec.h"

namespace espalier::eval {

namespace {

using Json = nlohmann::ordered_json;

std::string format(const char* pattern, double value) {
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), pattern, value);
  return text.data();
}

// Different values in the order in which they come.
template <typename Key>
std::vector<std::string> in_order(const std::vector<CellResult>& cells, Key key) {
  std::vector<std::string> values;
  for (const CellResult& c : cells)
    if (std::ranges::find(values, key(c)) == values.end()) values.push_back(key(c));
  return values;
}

std::vector<CellResult> rows_of(const EvalResult& result, bool controls) {
  std::vector<CellResult> rows;
  std::ranges::copy_if(result.cells, std::back_inserter(rows),
                       [&](const CellResult& c) { return c.control.has_value() == controls; });
  return rows;
}

// ---- JSON ----

Json row_json(const CellResult& c) {
  Json json = {{"policy", c.policy},      {"suite", c.suite},
               {"cell", c.cell},          {"control", c.control.has_value()},
               {"chance", c.chance},      {"n", c.n},
               {"correct", c.correct},    {"low", c.interval.low},
               {"high", c.interval.high}, {"tokens_mean", c.tokens_mean},
               {"flops", c.flops},        {"flops_unpruned", c.flops_unpruned}};
  if (c.control) json["control_name"] = name_of(*c.control);
  json["chosen_correctly"] = c.chosen_correctly ? Json(*c.chosen_correctly) : Json(nullptr);
  if (!c.control) {
    json["first_token_ms"] = c.first_token_ms;
    json["select_prefill_ms"] = c.select_prefill_ms;
  }
  if (c.relative) json["relative"] = *c.relative;
  if (c.difference)
    json["difference"] = {{"mean", c.difference->mean},
                          {"low", c.difference->interval.low},
                          {"high", c.difference->interval.high},
                          {"mcnemar_p", c.mcnemar ? Json(*c.mcnemar) : Json(nullptr)}};
  return json;
}

// ---- Markdown ----

class Table {
 public:
  explicit Table(std::vector<std::string> head) : rows_{std::move(head)} {}
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }

  std::string text() const {  // columns aligned for reading as plain text too
    std::vector<size_t> widths(rows_[0].size(), 3);
    for (const auto& row : rows_)
      for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], width(row[i]));
    std::string out;
    for (size_t r = 0; r < rows_.size(); ++r) {
      out += line(rows_[r], widths);
      if (r == 0) {
        out += "|";
        for (size_t i = 0; i < widths.size(); ++i) out += std::string(widths[i] + 1, '-') + (i ? ":|" : "-|");
        out += "\n";
      }
    }
    return out;
  }

 private:
  // Characters, not bytes.
  static size_t width(const std::string& text) {
    return static_cast<size_t>(std::ranges::count_if(text, [](char c) { return (c & 0xC0) != 0x80; }));
  }
  static std::string line(const std::vector<std::string>& cells, const std::vector<size_t>& widths) {
    std::string out = "|";
    for (size_t i = 0; i < cells.size(); ++i) {
      const std::string gap(widths[i] - width(cells[i]), ' ');
      out += " " + (i ? gap + cells[i] : cells[i] + gap) + " |";
    }
    return out + "\n";
  }

  std::vector<std::vector<std::string>> rows_;
};

const CellResult* find(const std::vector<CellResult>& rows, const std::string& policy, const std::string& cell) {
  const auto found = std::ranges::find_if(
      rows, [&](const CellResult& c) { return c.policy == policy && c.suite + "/" + c.cell == cell; });
  return found == rows.end() ? nullptr : &*found;
}

std::string accuracy_text(const CellResult& c) {
  std::string text = format("%.1f", 100 * c.accuracy()) + format(" ±%.1f", 50 * (c.interval.high - c.interval.low));
  const bool differs = c.difference && (c.difference->interval.low > 0 || c.difference->interval.high < 0);
  return text + (differs ? "*" : "");
}

std::string suite_table(const std::vector<CellResult>& rows, const std::string& suite) {
  std::vector<CellResult> own;
  std::ranges::copy_if(rows, std::back_inserter(own), [&](const CellResult& c) { return c.suite == suite; });
  std::vector<std::string> head = {"policy"};
  const std::vector<std::string> cells = in_order(own, [](const CellResult& c) { return c.cell; });
  head.insert(head.end(), cells.begin(), cells.end());
  Table table(head);
  std::vector<std::string> chance = {"chance"};
  for (const std::string& cell : cells)
    chance.push_back(format("%.1f", 100 * find(own, own[0].policy, suite + "/" + cell)->chance));
  for (const std::string& policy : in_order(own, [](const CellResult& c) { return c.policy; })) {
    std::vector<std::string> row = {"`" + policy + "`"};
    for (const std::string& cell : cells) {
      const CellResult* c = find(own, policy, suite + "/" + cell);
      row.push_back(c ? accuracy_text(*c) : "");
    }
    table.add(row);
  }
  table.add(chance);
  return table.text();
}

std::string control_table(const std::vector<CellResult>& rows) {
  const auto control_of = [](const CellResult& c) { return std::string(name_of(*c.control)); };
  std::vector<std::string> head = {"cell", "chance"};
  const std::vector<std::string> controls = in_order(rows, control_of);
  for (const std::string& control : controls) head.push_back(control), head.push_back("choice");
  Table table(head);
  for (const std::string& cell : in_order(rows, [](const CellResult& c) { return c.suite + "/" + c.cell; })) {
    std::vector<std::string> row = {cell, ""};
    for (const std::string& control : controls) {
      const auto c = std::ranges::find_if(
          rows, [&](const CellResult& r) { return r.suite + "/" + r.cell == cell && control_of(r) == control; });
      if (c != rows.end()) row[1] = format("%.1f", 100 * c->chance);
      row.push_back(c == rows.end() ? "" : accuracy_text(*c));
      const bool has_choice = c != rows.end() && c->chosen_correctly;
      row.push_back(has_choice
                        ? format("%.1f", 100.0 * static_cast<double>(*c->chosen_correctly) / static_cast<double>(c->n))
                        : "");
    }
    table.add(row);
  }
  return table.text();
}

// Means over cells, each cell counting the same.
std::string cost_table(const std::vector<CellResult>& rows) {
  Table table({"policy", "accuracy", "of unpruned", "choice", "tokens a layer", "FLOPs", "first token ms",
               "select + prefill ms"});
  double unpruned = 0;
  for (const std::string& policy : in_order(rows, [](const CellResult& c) { return c.policy; })) {
    double accuracy = 0, chosen = 0, tokens = 0, share = 0, first_token = 0, select_prefill = 0, cells = 0;
    bool has_choice = true;
    for (const CellResult& c : rows) {
      if (c.policy != policy) continue;
      accuracy += c.accuracy();
      has_choice &= c.chosen_correctly.has_value();
      if (c.chosen_correctly) chosen += static_cast<double>(*c.chosen_correctly) / static_cast<double>(c.n);
      tokens += c.tokens_mean;
      share += c.flops / c.flops_unpruned;
      first_token += c.first_token_ms;
      select_prefill += c.select_prefill_ms;
      ++cells;
    }
    if (policy == rows[0].policy) unpruned = accuracy / cells;
    table.add({"`" + policy + "`", format("%.1f", 100 * accuracy / cells),
               unpruned > 0 ? format("%.1f %%", 100 * accuracy / cells / unpruned) : "",
               has_choice ? format("%.1f", 100 * chosen / cells) : "", format("%.1f", tokens / cells),
               format("%.1f %%", 100 * share / cells), format("%.2f", first_token / cells),
               format("%.2f", select_prefill / cells)});
  }
  return table.text();
}

// ---- SVG ----

struct Line {
  std::string name;
  std::vector<std::array<double, 4>> points;  // x, accuracy, low, high
};

// `vtw:layer=3` -> 3; a negative number for other specs.
double withdrawal_layer(const std::string& policy) {
  constexpr std::string_view kPrefix = "vtw:layer=";
  return policy.starts_with(kPrefix) ? std::atof(policy.c_str() + kPrefix.size()) : -1;
}

// Of a path the file and its folder: `a/b/c.safetensors` -> `b/c.safetensors`. A list of fractions is no path.
std::string without_folders(const std::string& value) {
  if (value.find(':') != std::string::npos) return value;
  const std::filesystem::path path(value);
  return (path.parent_path().filename() / path.filename()).string();
}

// A policy's name with the options that are not its amount; of policies in sequence each one's.
std::string line_name(const std::string& spec) {
  std::string names;
  for (const PolicySpec& policy : parse_policy_spec(spec)) {
    names += (names.empty() ? "" : " + ") + policy.name;
    if (policy.name == "vtw" && !policy.options.empty() && policy.options[0].name == "layer") continue;
    const char* before = ":";
    for (const auto& [option, value] : policy.options) {
      if (option == "keep_ratio" || option == "num_kept") continue;
      names += before + option + "=" + without_folders(value);
      before = ",";
    }
  }
  return names;
}

std::vector<Line> lines_of(const std::vector<CellResult>& rows, bool is_curve) {
  std::vector<Line> lines;
  for (const CellResult& c : rows) {
    if (c.policy == "none") continue;
    const std::string name = line_name(c.policy);
    auto line = std::ranges::find(lines, name, &Line::name);
    if (line == lines.end()) line = lines.insert(lines.end(), Line{name, {}});
    line->points.push_back(
        {is_curve ? withdrawal_layer(c.policy) : c.tokens_mean, c.accuracy(), c.interval.low, c.interval.high});
  }
  for (Line& line : lines) std::ranges::sort(line.points);
  return lines;
}

constexpr std::array<const char*, 10> kInks = {"#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951",
                                               "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e", "#9498a0"};

const char* ink_of(size_t line) {
  return kInks[line % kInks.size()];
}

class Drawing {
 public:
  Drawing(int width, int height) {
    text_ = "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 " + std::to_string(width) + " " +
            std::to_string(height) +
            "\" font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n";
  }
  void line(double x0, double y0, double x1, double y1, const std::string& style) {
    text_ += "<line x1=\"" + num(x0) + "\" y1=\"" + num(y0) + "\" x2=\"" + num(x1) + "\" y2=\"" + num(y1) + "\" " +
             style + "/>\n";
  }
  // Of the i-th line: a dot, a square or a diamond in one of the inks.
  void mark(double x, double y, size_t i) {
    const std::string fill = "fill=\"" + std::string(ink_of(i)) + "\"/>\n";
    const size_t shape = i / kInks.size() % 3;
    if (shape == 0) {
      text_ += "<circle cx=\"" + num(x) + "\" cy=\"" + num(y) + "\" r=\"2.5\" " + fill;
    } else {
      const std::string turn = shape == 1 ? "" : "transform=\"rotate(45 " + num(x) + " " + num(y) + ")\" ";
      text_ +=
          "<rect x=\"" + num(x - 2.2) + "\" y=\"" + num(y - 2.2) + "\" width=\"4.4\" height=\"4.4\" " + turn + fill;
    }
  }
  void words(double x, double y, const std::string& words, const std::string& style = "") {
    text_ += "<text x=\"" + num(x) + "\" y=\"" + num(y) + "\" " + style + ">" + escaped(words) + "</text>\n";
  }
  std::string finish() && { return std::move(text_) + "</svg>\n"; }

 private:
  static std::string num(double v) { return format("%.1f", v); }
  static std::string escaped(const std::string& words) {
    std::string out;
    for (const char c : words) out += c == '&' ? "&amp;" : c == '<' ? "&lt;" : std::string(1, c);
    return out;
  }
  std::string text_;
};

constexpr double kPanelWidth = 220, kPanelHeight = 180, kLeft = 34, kRight = 14, kTop = 26, kBottom = 34;

struct Point {
  double x, y;
};

// Where the names of the legend begin: side by side, in as many rows as they need.
std::vector<Point> legend_places(const std::vector<std::string>& names, double y, double width) {
  std::vector<Point> places;
  double x = kLeft;
  for (const std::string& name : names) {
    const double needed = 20 + 6.5 * static_cast<double>(name.size());
    if (x > kLeft && x + needed > width) x = kLeft, y += 16;
    places.push_back({x, y});
    x += needed;
  }
  return places;
}

// One cell, its upper left corner at (x, y).
void draw_panel(Drawing& out, double x, double y, const std::string& title, const std::vector<CellResult>& rows,
                const std::vector<std::string>& names, double x_max, bool is_curve) {
  const double w = kPanelWidth - kLeft - kRight, h = kPanelHeight - kTop - kBottom;
  const auto px = [&](double v) { return x + kLeft + w * v / x_max; };
  const auto py = [&](double v) { return y + kTop + h * (1 - v); };
  out.words(x + kLeft, y + kTop - 8, title, "font-weight=\"bold\"");
  for (const double share : {0.0, 0.25, 0.5, 0.75, 1.0}) {
    out.line(px(0), py(share), px(x_max), py(share), "stroke=\"#e5e5e5\"");
    out.words(x + kLeft - 4, py(share) + 4, format("%.0f", 100 * share), "text-anchor=\"end\" fill=\"#666\"");
  }
  for (const double share : {0.0, 0.5, 1.0})
    out.words(px(share * x_max), py(0) + 14, format("%.0f", share * x_max), "text-anchor=\"middle\" fill=\"#666\"");
  out.words(px(x_max / 2), py(0) + 27, is_curve ? "images are gone before layer" : "image tokens a layer",
            "text-anchor=\"middle\" fill=\"#666\"");
  for (const CellResult& c : rows)
    if (c.policy == "none")
      out.line(px(0), py(c.accuracy()), px(x_max), py(c.accuracy()), "stroke=\"#555\" stroke-dasharray=\"5 3\"");
  out.line(px(0), py(rows[0].chance), px(x_max), py(rows[0].chance), "stroke=\"#999\" stroke-dasharray=\"1 3\"");
  for (const Line& line : lines_of(rows, is_curve)) {
    const auto number = static_cast<size_t>(std::ranges::find(names, line.name) - names.begin());
    const std::string ink = ink_of(number);
    for (size_t i = 0; i < line.points.size(); ++i) {
      const auto& [vx, accuracy, low, high] = line.points[i];
      out.line(px(vx), py(low), px(vx), py(high), "stroke=\"" + ink + "\" stroke-opacity=\"0.4\"");
      out.mark(px(vx), py(accuracy), number);
      if (i > 0)
        out.line(px(line.points[i - 1][0]), py(line.points[i - 1][1]), px(vx), py(accuracy), "stroke=\"" + ink + "\"");
    }
  }
}

}  // namespace

std::string to_json(const EvalResult& result, const EvalContext& context, const Json& head) {
  Json cells = Json::array(), digests = Json::object();
  for (const CellResult& c : result.cells) cells.push_back(row_json(c));
  for (const auto& [cell, digest] : result.digests) digests[cell] = digest;
  Json json = head;
  json.update({{"split", "test"},
               {"seed", context.seed},
               {"items", context.items},
               {"difficulty", context.difficulty}});
  if (!context.command.empty()) json["command"] = context.command;
  json.update({{"complete", result.is_complete}, {"items_sha256", digests}, {"cells", cells}});
  return json.dump(1) + "\n";
}

std::string to_json_line(const EvalAnswer& answer) {
  const Json json = {
      {"schema", kJsonSchema},       {"suite", answer.suite},
      {"cell", answer.cell},         {"control", answer.control ? Json(name_of(*answer.control)) : Json(nullptr)},
      {"item", answer.item},         {"policy", answer.policy},
      {"draw", answer.draw},         {"answer", answer.answer},
      {"expected", answer.expected}, {"right", answer.is_correct},
      {"tokens", answer.tokens}};
  return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string to_markdown(const EvalResult& result, const EvalContext& context) {
  const std::vector<CellResult> rows = rows_of(result, false), controls = rows_of(result, true);
  std::string text =
      "Accuracy in percent, exact match of the greedy answer; " + std::to_string(context.items) + " items a cell, " +
      context.difficulty + " scenes, seed " + std::to_string(context.seed) +
      ". ± is half the Wilson interval (95 %); * marks a difference to the unpruned model on the same items "
      "whose bootstrap interval (95 %) leaves out 0. First token: encode, select and prefill of an item asked alone, "
      "median.\n\n    " +
      context.command + "\n";
  if (!result.is_complete)
    text += "\n**Interrupted:** the last cell has the items that every policy had answered, others are missing.\n";
  for (const std::string& suite : in_order(rows, [](const CellResult& c) { return c.suite; }))
    text += "\n**" + suite + "**\n\n" + suite_table(rows, suite);
  text += "\n**Mean over the cells above, and cost**\n\n" + cost_table(rows);
  if (!controls.empty())
    text += "\n**Controls, unpruned** (choice: among the item's candidate answers)\n\n" + control_table(controls);
  return text;
}

std::string to_svg(const EvalResult& result) {
  const std::vector<CellResult> rows = rows_of(result, false);
  const std::vector<std::string> cells = in_order(rows, [](const CellResult& c) { return c.suite + "/" + c.cell; });
  std::vector<std::string> names;
  for (const std::string& name : in_order(rows, [](const CellResult& c) { return line_name(c.policy); }))
    if (name != "none") names.push_back(name);
  const bool is_curve = std::ranges::all_of(
      rows, [](const CellResult& c) { return c.policy == "none" || withdrawal_layer(c.policy) >= 0; });
  constexpr size_t kColumns = 4;
  const size_t lines = (cells.size() + kColumns - 1) / kColumns;
  const double width = kPanelWidth * kColumns, top_of_legend = kPanelHeight * static_cast<double>(lines) + 20;
  const std::vector<Point> legend = legend_places(names, top_of_legend, width);
  const double end_of_legend = legend.empty() ? top_of_legend : legend.back().y;
  Drawing out(static_cast<int>(width), static_cast<int>(end_of_legend) + 40);
  for (size_t i = 0; i < cells.size(); ++i) {
    std::vector<CellResult> own;
    std::ranges::copy_if(rows, std::back_inserter(own),
                         [&](const CellResult& c) { return c.suite + "/" + c.cell == cells[i]; });
    double x_max = 1;
    for (const CellResult& c : own)
      x_max = std::max(x_max, is_curve ? withdrawal_layer(c.policy) + 1 : std::ceil(c.tokens_mean));
    draw_panel(out, kPanelWidth * static_cast<double>(i % kColumns), kPanelHeight * static_cast<double>(i / kColumns),
               cells[i], own, names, x_max, is_curve);
  }
  for (size_t i = 0; i < names.size(); ++i) {
    out.mark(legend[i].x, legend[i].y - 4, i);
    out.words(legend[i].x + 7, legend[i].y, names[i]);
  }
  out.words(kLeft, end_of_legend + 20,
            "Accuracy in percent with Wilson intervals (95 %). Dashed: unpruned. Dotted: chance.", "fill=\"#666\"");
  return std::move(out).finish();
}

}  // namespace espalier::eval
