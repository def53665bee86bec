// SPDX-License-Identifier: Apache-2.0
// The places of the data's way through a model where visual tokens may be removed. No libtorch type appears here.
#pragma once

#include <compare>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

namespace espalier {

// Layers are 0-based everywhere; "before layer L" means that L has not run.
enum class Site : uint8_t {
  kVisionOutput,     // patches as the vision tower leaves them, before the projector
  kProjectorOutput,  // the packed sequence, before the decoder
  kBeforeLayer,      // the state that enters decoder layer L
  kAfterAttention,   // inside layer L, after its attention: the layer's own cache stays whole, rows leave
  kCache,  // the cache of layer L after prefill and, where a step says so, after generated tokens; tokens stay
           // in the residual stream
};

struct ActPoint {
  Site site = Site::kProjectorOutput;
  int layer = 0;  // for the last three
  bool operator==(const ActPoint&) const = default;
  // Along the data: before layer L, after its attention, its cache, before layer L + 1.
  std::strong_ordering operator<=>(const ActPoint& other) const {
    const auto place = [](const ActPoint& p) { return std::pair(p.site < Site::kBeforeLayer ? -1 : p.layer, p.site); };
    return place(*this) <=> place(other);
  }
};

// "before_layer" …, as in files and messages; a point with its layer where it has one.
std::string_view name_of(Site site);
std::string to_string(const ActPoint& point);

}  // namespace espalier
