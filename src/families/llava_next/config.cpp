// SPDX-License-Identifier: Apache-2.0
#include "families/llava_next/config.h"

#include <algorithm>
#include <utility>

#include "model/config_section.h"

namespace espalier {

namespace {

using Json = nlohmann::json;

// [height, width] in pixels, each a whole number of tiles of the tower's side.
std::vector<Pinpoint> read_pinpoints(const Section& root, int64_t tile) {
  std::vector<Pinpoint> pinpoints;
  if (!root.has("image_grid_pinpoints")) {
    for (const auto& [rows, cols] : {std::pair{1, 2}, {2, 1}, {2, 2}, {3, 1}, {1, 3}})
      pinpoints.push_back({336 * rows, 336 * cols});
  } else {
    const Json& list = root.at("image_grid_pinpoints");
    for (const Json& entry : list.is_array() ? list : Json::array({list})) {
      if (!entry.is_array() || entry.size() != 2 || !entry[0].is_number_integer() || !entry[1].is_number_integer())
        root.fail("image_grid_pinpoints", "pairs [height, width]");
      pinpoints.push_back({entry[0].get<int64_t>(), entry[1].get<int64_t>()});
    }
    if (pinpoints.empty()) throw Error(root.field("image_grid_pinpoints") + ": the list is empty");
  }
  for (const auto& [height, width] : pinpoints)
    if (std::min(height, width) < tile || std::max(height, width) > 100 * tile || height % tile != 0 ||
        width % tile != 0)
      throw Error(root.field("image_grid_pinpoints") + ": [" + std::to_string(height) + ", " + std::to_string(width) +
                  "] is not made of 1 to 100 tiles of " + std::to_string(tile) +
                  " pixels, the vision tower's, each way");
  return pinpoints;
}

}  // namespace

LlavaNextConfig read_llava_next_config(const Section& root) {
  LlavaNextConfig config{.llava = read_llava_config(root)};
  config.grid_pinpoints = read_pinpoints(root, config.llava.vision.image_size);
  return config;
}

}  // namespace espalier
