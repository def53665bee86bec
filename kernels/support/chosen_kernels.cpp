// SPDX-License-Identifier: Apache-2.0
#include "kernels/support/chosen_kernels.h"

#include <algorithm>

namespace espalier::kernels {

namespace {

thread_local ChosenKernels* collecting = nullptr;

}  // namespace

ChosenKernels::ChosenKernels(Seen before) : seen_(std::move(before)), outer_(collecting) {
  collecting = this;
}

ChosenKernels::~ChosenKernels() {
  collecting = outer_;
}

std::vector<std::pair<std::string, std::string>> ChosenKernels::list() const {
  auto sorted = seen_;
  std::sort(sorted.begin(), sorted.end());
  std::vector<std::pair<std::string, std::string>> joined;
  for (const auto& [op, kernel] : sorted) {
    if (joined.empty() || joined.back().first != op)
      joined.emplace_back(op, kernel);
    else
      joined.back().second.append(" + ").append(kernel);
  }
  return joined;
}

void note_kernel(std::string_view op, std::string_view kernel) {
  if (collecting == nullptr) return;
  auto& seen = collecting->seen_;
  const std::pair<std::string_view, std::string_view> choice{op, kernel};
  if (std::find(seen.begin(), seen.end(), choice) == seen.end()) seen.push_back(choice);
}

}  // namespace espalier::kernels
