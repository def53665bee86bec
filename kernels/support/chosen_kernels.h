// SPDX-License-Identifier: Apache-2.0
// Which kernel served each op, for statistics and benchmarks: a flag lost in the build, or a shape that has no fast
// path, shows here and nowhere else. Kernels report what they ran, not what they would run. Not a profiler.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/support/cpu_level.h"
#include "kernels/support/element_type.h"

namespace espalier::kernels {

// Collects what ops of the calling thread report while it lives; one inside another takes over until it ends. Threads
// do not see each other's.
class ChosenKernels {
 public:
  using Seen =
      std::vector<std::pair<std::string_view, std::string_view>>;  // (op, kernel), in the order of their first use

  ChosenKernels() : ChosenKernels(Seen()) {}
  explicit ChosenKernels(Seen before);  // goes on collecting
  ~ChosenKernels();
  ChosenKernels(const ChosenKernels&) = delete;
  ChosenKernels& operator=(const ChosenKernels&) = delete;

  // (op, kernel), sorted by op; the kernels of an op that used several are joined by " + ".
  std::vector<std::pair<std::string, std::string>> list() const;
  const Seen& seen() const { return seen_; }

 private:
  friend void note_kernel(std::string_view op, std::string_view kernel);

  Seen seen_;
  ChosenKernels* outer_;
};

// Called by an op where it has chosen, on the thread that called it. Both names must be literals. Costs next to nothing
// where nobody collects.
void note_kernel(std::string_view op, std::string_view kernel);

// The names of the usual choices: vector loops beside the plain ones, and products of rows by DotPanel.
inline std::string_view vector_kernel_name(CpuLevel level) {
  return level >= CpuLevel::kAvx512 ? "avx512" : level == CpuLevel::kAvx2 ? "avx2" : "plain";
}
// Of the vector loops that take few rows of a linear layer.
inline std::string_view few_rows_kernel_name(CpuLevel level) {
  return level >= CpuLevel::kAvx512 ? "avx512_rows" : "avx2_rows";
}
inline std::string_view panel_kernel_name(CpuLevel level, ElementType type) {
  if (level < CpuLevel::kAvx512) return vector_kernel_name(level);
  if (type != ElementType::kBFloat16) return "avx512_f32";
  return level == CpuLevel::kAmx ? "amx_bf16" : "avx512_bf16";
}

}  // namespace espalier::kernels
