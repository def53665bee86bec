// SPDX-License-Identifier: Apache-2.0
#include "runtime/cost_model.h"

#include <array>
#include <functional>
#include <numeric>
#include <utility>

#include "espalier/error.h"
#include "layout/plan.h"
#include "pruning/policy_spec.h"
#include "runtime/image_cache.h"

namespace espalier {

namespace {

double sum_over_layers(const Work& work, double (*of_rows)(double)) {
  double sum = 0;
  for (const int64_t rows : work.rows.of_layer) sum += of_rows(static_cast<double>(rows));
  return sum;
}

constexpr std::array<CostTerm<Work>, 7> kEncodeTerms = {{
    {"request", [](const Work&) { return 1.0; }},
    {"picture", [](const Work& w) { return w.pictures; }},
    {"picture_pixel", [](const Work& w) { return w.picture_pixels; }},
    {"tower_value", [](const Work& w) { return w.tower_values; }},
    {"tower_square", [](const Work& w) { return w.tower_squares; }},
    {"text_token", [](const Work& w) { return w.text_tokens; }},
    {"projected_token", [](const Work& w) { return static_cast<double>(w.rows.projected); }},
}};

constexpr std::array<CostTerm<Work>, 3> kPrefillTerms = {{
    {"request", [](const Work&) { return 1.0; }},
    {"row", [](const Work& w) { return sum_over_layers(w, [](double n) { return n; }); }},
    {"row_square", [](const Work& w) { return sum_over_layers(w, [](double n) { return n * n; }); }},
}};

constexpr std::array<CostTerm<PlannedSelection>, 6> kSelectTerms = {{
    {"step", [](const PlannedSelection&) { return 1.0; }},
    {"row", [](const PlannedSelection& s) { return s.rows; }},
    {"candidate", [](const PlannedSelection& s) { return s.candidates; }},
    {"candidate_row", [](const PlannedSelection& s) { return s.candidates * s.rows; }},
    {"comparison", [](const PlannedSelection& s) { return s.comparisons; }},
    {"pick", [](const PlannedSelection& s) { return s.picks; }},
}};

template <typename Of>
double sum_of(const StageCosts& costs, std::span<const CostTerm<Of>> terms, const Of& of) {
  double sum = 0;
  for (size_t i = 0; i < terms.size(); ++i) sum += costs.of_term[i] * terms[i].value(of);
  return sum;
}

}  // namespace

std::span<const CostTerm<Work>> encode_terms() {
  return kEncodeTerms;
}
std::span<const CostTerm<Work>> prefill_terms() {
  return kPrefillTerms;
}
std::span<const CostTerm<PlannedSelection>> select_terms() {
  return kSelectTerms;
}

Work work_of(const PackedPrompt& prompt, PlannedRows rows) {
  Work work;
  for (size_t i = 0; i < prompt.images.size(); ++i) {
    const ImagePart& part = prompt.images[i];
    if (part.handle && part.handle->features(prompt.plans[i])) continue;
    const std::vector<int64_t>& shape = prompt.plans[i].pixel_shape;
    const auto values = std::accumulate(shape.begin(), shape.end(), 1.0, std::multiplies<>());
    work.pictures += 1;
    work.picture_pixels += static_cast<double>(part.image->width) * part.image->height;
    work.tower_values += values;
    work.tower_squares += values * values;
  }
  const PromptLayout& layout = *prompt.layout;
  work.text_tokens = static_cast<double>(layout.num_tokens - layout.num_image_tokens(/*with_row_breaks=*/true));
  work.rows = std::move(rows);
  return work;
}

double cost_of(const StageCosts& costs, std::span<const CostTerm<Work>> terms, const Work& work) {
  return sum_of(costs, terms, work);
}
double cost_of(const StageCosts& costs, const PlannedSelection& selection) {
  return sum_of(costs, select_terms(), selection);
}

double CostModel::milliseconds(const Work& work) const {
  double sum = cost_of(encode, kEncodeTerms, work) + cost_of(prefill, kPrefillTerms, work);
  for (const PlannedSelection& selection : work.rows.selections) {
    const std::string spec = without_amount(selection.policy);
    auto found = select.find(spec);
    if (found == select.end()) found = select.find(std::string(name_of_spec(spec)));
    if (found == select.end())
      throw Error("ttft: what " + spec + " takes to select was not measured: espalier calibrate --policy " + spec);
    sum += cost_of(found->second, selection);
  }
  return sum;
}

std::string without_amount(std::string_view text) {
  std::string shortened;
  for (const PolicySpec& spec : parse_policy_spec(text)) {
    if (!shortened.empty()) shortened += " + ";
    shortened += spec.name;
    char before = ':';
    for (const auto& [name, value] : spec.options) {
      if (name == "keep_ratio" || name == "num_kept" || name == "ttft" || name == "kv") continue;
      shortened += before + name + "=" + value;
      before = ',';
    }
  }
  return shortened;
}

}  // namespace espalier
