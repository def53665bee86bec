// SPDX-License-Identifier: Apache-2.0
#include "cli/cost_table.h"

#include <array>
#include <cstdio>
#include <numeric>
#include <utility>

#include "cli/formatted.h"
#include "espalier/policies/table.h"

namespace espalier::cli {

namespace {

// What follows the name in a spec. "" is a policy's own schedule.
struct CostSpec {
  std::string_view name, options;
};
constexpr std::string_view kShare = "keep_ratio=2/9";
constexpr std::array kSpecs = {
    CostSpec{"none", ""},
    CostSpec{"attention", "keep_ratio=2/9,layer=2"},
    CostSpec{"m3", "keep_ratio=1/4"},  // a cell is a square
    CostSpec{"pyramiddrop", ""},
    CostSpec{"sparsevlm", "keep_ratio=25/48:25/72:55/288"},  // the published 300:200:110 of 576
    CostSpec{"visionpulse", ""},
    CostSpec{"vtw", ""},
};

std::string spec_of(std::string_view name) {
  std::string_view options = kShare;
  for (const CostSpec& spec : kSpecs)
    if (spec.name == name) options = spec.options;
  return std::string(name) + (options.empty() ? "" : ":") + std::string(options);
}

std::string_view why_not(std::string_view name) {
  if (name == "keepmask") return "applies the sets of a file, and costs what these keep";
  if (name == "fitprune") return "needs the recipe of `espalier fit`";
  if (name == "atp") return "needs trained modules, or the thresholds of `espalier fit`";
  return {};
}

// "2 x 320, 71" for 320 320 71.
std::string runs_of(const std::vector<int64_t>& counts) {
  std::string text;
  for (size_t i = 0; i < counts.size();) {
    size_t end = i;
    while (end < counts.size() && counts[end] == counts[i]) ++end;
    text += text.empty() ? "" : ", ";
    if (end - i > 1) text += std::to_string(end - i) + " x ";
    text += std::to_string(counts[i]);
    i = end;
  }
  return text;
}

std::vector<int64_t> image_tokens_by_layer(const Stats& stats) {
  std::vector<int64_t> counts;
  for (const std::vector<int64_t>& of_images : stats.image_tokens_per_layer)
    counts.push_back(std::accumulate(of_images.begin(), of_images.end(), int64_t{0}));
  return counts;
}

std::string row_text(const CostRow& row, const CostRow& first) {
  const std::vector<int64_t> counts = image_tokens_by_layer(row.stats);
  const double mean = static_cast<double>(std::accumulate(counts.begin(), counts.end(), int64_t{0})) /
                      static_cast<double>(counts.size());
  const auto percent = [](double part, double whole) { return 100 * part / whole; };
  return "| `" + row.policy + "` | " + runs_of(counts) + " | " +
         formatted("%ld | %.1f | %.2f | %.0f %% | %.1f | %.2f | %.0f | %.0f %% |\n", static_cast<long>(counts.back()),
                   mean, 1e-9 * row.stats.prefill_flops, percent(row.stats.prefill_flops, first.stats.prefill_flops),
                   row.first_token_ms, row.select_ms, static_cast<double>(row.stats.kv_bytes) / 1024,
                   percent(static_cast<double>(row.stats.kv_bytes), static_cast<double>(first.stats.kv_bytes)));
}

}  // namespace

std::vector<std::string> every_policy(const ModelFacts& model, std::vector<std::string>& left_out) {
  std::vector<std::string> specs;
  for (const PolicyEntry& entry : policy_table()) {
    const std::string refusal = entry.refusal(model);
    const std::string_view reason = why_not(entry.name);
    if (!reason.empty()) {
      left_out.push_back(std::string(entry.name) + " (" + std::string(reason) + ")");
    } else if (!refusal.empty()) {
      left_out.push_back(std::string(entry.name) + " (" + refusal + ")");
    } else {
      specs.push_back(spec_of(entry.name));
    }
  }
  return specs;
}

std::string cost_table(const std::string& heading, const std::vector<CostRow>& rows,
                       const std::vector<std::string>& left_out) {
  std::string text =
      heading +
      "\n\n| policy | image tokens entering each layer | last | mean | prefill GFLOP | | first token ms | "
      "select ms | KV KiB | |\n|---|---|--:|--:|--:|--:|--:|--:|--:|--:|\n";
  for (const CostRow& row : rows) text += row_text(row, rows.front());
  text +=
      "\nPapers count in different ways, so all are here. *last*: image tokens that enter the last layer, the count "
      "most "
      "of them\nquote; *mean*: over all layers, what methods that cut in stages quote. *Prefill*: FLOPs of the decoder "
      "layers, text included,\nattention counted causally, without what the policy's signals cost, which *select* "
      "times "
      "(signals, decision, and taking\nthe tokens out). *First token*: encode, select and prefill. *KV*: bytes cached "
      "after the prefill, text included, where each\nlayer, and under `plphp` each KV head, has its own length. "
      "Shares "
      "are of the first row.\n";
  for (size_t i = 0; i < left_out.size(); ++i)
    text += (i == 0 ? "Left out: " : ", ") + left_out[i] + (i + 1 == left_out.size() ? ".\n" : "");
  return text;
}

}  // namespace espalier::cli
