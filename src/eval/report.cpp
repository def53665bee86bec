// SPDX-License-Identifier: Apache-2.0
#include "eval/report.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <utility>

#include "pruning/policy_spec.h"
#include "report/plot.h"

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
      const std::string chance = c == rows.end() ? "" : format("%.1f", 100 * c->chance);
      if (row[1].empty()) row[1] = chance;
      row.push_back(c == rows.end() ? "" : accuracy_text(*c) + (chance == row[1] ? "" : " (chance " + chance + ")"));
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
  Table table({"policy", "accuracy", "of unpruned", "choice", "tokens per layer", "FLOPs", "first token ms",
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
  std::vector<PlotPoint> points;
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

bool is_amount(std::string_view option) {
  return option == "keep_ratio" || option == "num_kept";
}

// A policy's name with its options, or those that are not its amount; of policies in sequence each one's.
std::string line_name(const std::string& spec, bool with_amount) {
  std::string names;
  for (const PolicySpec& policy : parse_policy_spec(spec)) {
    names += (names.empty() ? "" : " + ") + policy.name;
    if (policy.name == "vtw" && !policy.options.empty() && policy.options[0].name == "layer") continue;
    const char* before = ":";
    for (const auto& [option, value] : policy.options) {
      if (is_amount(option) && !with_amount) continue;
      names += before + option + "=" + without_folders(value);
      before = ",";
    }
  }
  return names;
}

// What the legend calls each spec: those that differ in the amount alone are points of one line; one that has no such
// others shows its amount.
std::map<std::string, std::string> line_names(const std::vector<CellResult>& rows) {
  std::map<std::string, std::set<std::string>> specs_of;
  for (const CellResult& c : rows) specs_of[line_name(c.policy, false)].insert(c.policy);
  std::map<std::string, std::string> names;
  for (const auto& [name, specs] : specs_of)
    for (const std::string& spec : specs) names[spec] = specs.size() == 1 ? line_name(spec, true) : name;
  return names;
}

std::vector<Line> lines_of(const std::vector<CellResult>& rows, const std::map<std::string, std::string>& names,
                           bool is_curve) {
  std::vector<Line> lines;
  for (const CellResult& c : rows) {
    if (c.policy == "none") continue;
    const std::string& name = names.at(c.policy);
    auto line = std::ranges::find(lines, name, &Line::name);
    if (line == lines.end()) line = lines.insert(lines.end(), Line{name, {}});
    line->points.push_back({.x = is_curve ? withdrawal_layer(c.policy) : c.tokens_mean,
                            .y = 100 * c.accuracy(),
                            .interval = std::pair(100 * c.interval.low, 100 * c.interval.high)});
  }
  for (Line& line : lines) std::ranges::sort(line.points, {}, &PlotPoint::x);
  return lines;
}

// One cell, with the lines that a block's legend names.
PlotPanel panel_of(const std::string& title, const std::vector<CellResult>& rows,
                   const std::map<std::string, std::string>& names, std::span<const std::string> legend,
                   bool is_curve) {
  PlotPanel panel{.title = title,
                  .x_label = is_curve ? "images are gone before layer" : "image tokens per layer",
                  .y_label = "accuracy, %",
                  .y_end = 100};
  for (const CellResult& c : rows)
    if (c.policy == "none") panel.levels.push_back({100 * c.accuracy()});
  panel.levels.push_back({100 * rows[0].chance, true});
  for (Line& line : lines_of(rows, names, is_curve)) {
    const auto place = std::ranges::find(legend, line.name);
    if (place != legend.end())
      panel.lines.push_back({static_cast<size_t>(place - legend.begin()), std::move(line.points)});
  }
  return panel;
}

}  // namespace

std::string to_json(const EvalResult& result, const EvalContext& context, const Json& head) {
  Json cells = Json::array(), digests = Json::object();
  for (const CellResult& c : result.cells) cells.push_back(row_json(c));
  for (const auto& [cell, digest] : result.digests) digests[cell] = digest;
  Json json = head;
  json.update(
      {{"split", "test"}, {"seed", context.seed}, {"items", context.items}, {"difficulty", context.difficulty}});
  if (!context.command.empty()) json["command"] = context.command;
  json.update({{"complete", result.is_complete}, {"items_sha256", digests}, {"cells", cells}});
  return json.dump(1) + "\n";
}

std::string to_markdown(const EvalResult& result, const EvalContext& context) {
  const std::vector<CellResult> rows = rows_of(result, false), controls = rows_of(result, true);
  std::string text =
      "Accuracy in percent, exact match of the greedy answer; " + std::to_string(context.items) + " items per cell, " +
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
  const std::map<std::string, std::string> names = line_names(rows);
  std::vector<std::string> legend =
      in_order(rows, [&](const CellResult& c) { return c.policy == "none" ? std::string() : names.at(c.policy); });
  std::erase(legend, "");
  const bool is_curve = std::ranges::all_of(
      rows, [](const CellResult& c) { return c.policy == "none" || withdrawal_layer(c.policy) >= 0; });
  std::vector<PlotBlock> blocks;
  for (size_t begin = 0; begin == 0 || begin < legend.size(); begin += kLinesPerBlock) {
    const auto of_block = std::span(legend).subspan(begin, std::min(kLinesPerBlock, legend.size() - begin));
    PlotBlock& block = blocks.emplace_back();
    block.legend.assign(of_block.begin(), of_block.end());
    for (const std::string& cell : in_order(rows, [](const CellResult& c) { return c.suite + "/" + c.cell; })) {
      std::vector<CellResult> own;
      std::ranges::copy_if(rows, std::back_inserter(own),
                           [&](const CellResult& c) { return c.suite + "/" + c.cell == cell; });
      block.panels.push_back(panel_of(cell, own, names, of_block, is_curve));
    }
  }
  return plot_svg(blocks, "Bars: Wilson intervals (95 %). Dashed: unpruned. Dotted: chance.");
}

}  // namespace espalier::eval
