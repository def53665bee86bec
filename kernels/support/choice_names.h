// SPDX-License-Identifier: Apache-2.0
// The names that schemas give to the choices of espalier/op_choices.h.
#pragma once

#include <c10/util/Exception.h>

#include <array>
#include <cstddef>
#include <string_view>

#include "espalier/op_choices.h"

namespace espalier::ops {

template <typename Choice>
struct ChoiceNames;

template <>
struct ChoiceNames<HeadReduction> {
  static constexpr std::string_view argument = "attention_probe: heads";
  static constexpr std::array<const char*, 3> names{"mean", "max", "each"};
};
template <>
struct ChoiceNames<Similarity> {
  static constexpr std::string_view argument = "facility_location_greedy: similarity";
  static constexpr std::array<const char*, 3> names{"affine", "clamp", "minmax"};
};
template <>
struct ChoiceNames<Distance> {
  static constexpr std::string_view argument = "max_min_select: distance";
  static constexpr std::array<const char*, 3> names{"cosine", "l1", "l2"};
};

template <typename Choice>
const char* choice_name(Choice choice) {
  using Names = ChoiceNames<Choice>;
  const auto i = static_cast<size_t>(choice);
  TORCH_CHECK(i < Names::names.size(), Names::argument, ": there is no choice ", i);
  return Names::names[i];
}

template <typename Choice>
Choice choice_named(std::string_view name) {
  using Names = ChoiceNames<Choice>;
  for (size_t i = 0; i < Names::names.size(); ++i)
    if (name == Names::names[i]) return static_cast<Choice>(i);
  TORCH_CHECK(false, Names::argument, " must be ", Names::names[0], ", ", Names::names[1], " or ", Names::names[2],
              ", got ", name);
}

}  // namespace espalier::ops
