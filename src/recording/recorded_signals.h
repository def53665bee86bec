// SPDX-License-Identifier: Apache-2.0
// Answers a policy from recorded arrays: survivors' rows and columns are gathered from the full-length ones, nothing is
// renormalised or recomputed.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <string>
#include <utility>

#include "espalier/pruning.h"

namespace espalier {

class RecordedSignals {
 public:
  // Throws Error when the file is not safetensors with float32 arrays of the layout's length.
  RecordedSignals(const std::filesystem::path& file, const PromptLayout& prompt, int64_t num_generated = 0);
  // The same of arrays in memory; `name` stands in errors.
  RecordedSignals(std::map<std::string, at::Tensor> arrays, std::string name, const PromptLayout& prompt,
                  int64_t num_generated = 0);
  // Made-up arrays, on any device, that fit.
  RecordedSignals(std::map<std::string, at::Tensor> arrays, std::string name)
      : file_(std::move(name)), arrays_(std::move(arrays)) {}

  // Widths, heads and towers as far as the arrays show them.
  void complete(ModelFacts& model) const;

  at::Tensor compute(const Signal& signal, const ActPoint& point, const TokenLayout& layout) const;
  // Attention of generated token number `generated`, 1, 2, …, as GeneratedRows takes it: [h, n + generated].
  at::Tensor generated_row(int layer, const TokenLayout& layout, int64_t generated) const;

 private:
  void check_places(const TokenLayout& layout, const ActPoint& point) const;
  const at::Tensor& array(const std::string& name) const;
  bool has(const std::string& name) const { return arrays_.contains(name); }
  at::Tensor attention(int layer, const at::Tensor& rows, const at::Tensor& columns) const;  // [h, r, c]
  at::Tensor state(const std::string& family, const ActPoint& point, const TokenLayout& layout) const;
  at::Tensor probe(const AttentionProbe& probe, const TokenLayout& layout) const;
  at::Tensor growth(const AttentionGrowth& growth, const ActPoint& point, const TokenLayout& layout) const;
  at::Tensor tap(const Tap& tap, const ActPoint& point, const TokenLayout& layout) const;

  std::string file_;
  std::map<std::string, at::Tensor> arrays_;
};

}  // namespace espalier
