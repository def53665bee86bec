// SPDX-License-Identifier: Apache-2.0
// Reads questions about crowded scenes as a person would: by their words, and by where things lie in the scene.
#pragma once

#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "synth/scene.h"

namespace espalier::synth::test {

inline std::vector<std::string> words_of(std::string text) {
  std::erase(text, '?');
  std::istringstream in(text);
  return {std::istream_iterator<std::string>(in), {}};
}

// Who fits the words of a question, by the positions and colours of the scene alone.
inline std::vector<size_t> who_is_meant(const Scene& scene, const std::string& text) {
  const std::vector<std::string> w = words_of(text);
  const std::vector<Object>& objects = scene.objects;
  const auto all_with = [&](auto has) {
    std::vector<size_t> found;
    for (size_t i = 0; i < objects.size(); ++i)
      if (has(i)) found.push_back(i);
    return found;
  };
  const auto is_kind = [&](size_t i, const std::string& colour, const std::string& shape) {
    return name_of(objects[i].colour) == colour && name_of(objects[i].shape) == shape;
  };
  if (text.starts_with("what has the"))
    return all_with([&](size_t i) { return name_of(scene.marks[i].colour) == w[3]; });
  if (text.starts_with("what shape is")) return all_with([&](size_t i) { return name_of(objects[i].colour) == w[3]; });
  if (text.starts_with("where is the")) return all_with([&](size_t i) { return is_kind(i, w[3], w[4]); });
  if (text.starts_with("what spot is on the")) return all_with([&](size_t i) { return is_kind(i, w[5], w[6]); });
  return all_with([&](size_t i) { return name_of(objects[i].shape) == w[4]; });
}

}  // namespace espalier::synth::test
