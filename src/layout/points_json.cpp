// SPDX-License-Identifier: Apache-2.0
#include "layout/points_json.h"

#include <nlohmann/json.hpp>

namespace espalier {

nlohmann::ordered_json to_json(const PointTrace& point) {
  nlohmann::ordered_json json = {{"site", point.site}};
  if (point.layer >= 0) json["layer"] = point.layer;
  if (point.generated > 0) json["generated"] = point.generated;
  if (point.kept_per_head.empty()) {
    json["kept"] = point.kept;
  } else {
    json["kept"] = point.kept_per_head;
  }
  if (!point.scores.empty()) {
    json["candidates"] = point.candidates;
    json["scores"] = point.scores;
  }
  for (const auto& [name, values] : point.notes) json["notes"][name] = values;
  return json;
}

}  // namespace espalier
