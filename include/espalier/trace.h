// SPDX-License-Identifier: Apache-2.0
// What happened to a request's visual tokens, as plain structs: all that `espalier inspect` shows. Callbacks::on_prompt
// and on_point hand them out as the request runs, Request::trace keeps the points in its result. Nothing is copied from
// the device for them unless one of the three asks. Times, bytes and FLOPs are not here but in Stats.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "espalier/image.h"

namespace espalier {

// A token before anything leaves.
struct TokenTrace {
  enum class Kind : uint8_t { kText, kPatch, kRowBreak };
  Kind kind = Kind::kText;
  int image = -1;                    // ordinal of the image in the request; -1 for text
  int crop = -1;                     // of a patch: 0 the full view, 1, 2, … the tiles of an any-resolution image
  int example = -1;                  // in-context example; -1: `<s>` and the system prompt
  int64_t row = -1, column = -1;     // of a patch, in its crop
  std::optional<PixelBox> box = {};  // of a patch: what it shows of its picture
};

// Of a whole prompt, in the unpruned sequence. A token's index here is its source index everywhere else.
struct PromptTrace {
  struct Picture {
    int64_t rows = 0, columns = 0;            // of one whole crop
    int64_t tile_rows = 0, tile_columns = 0;  // 0: one crop
    bool operator==(const Picture&) const = default;
  };
  int query_example = 0;
  std::vector<Picture> pictures;
  std::vector<TokenTrace> tokens;
  std::vector<std::vector<int64_t>> position_id;  // [1][tokens]; M-RoPE: [3][tokens], time, height, width
};

// One point where the policy acted. All lists of tokens are source indices, ascending; text is never among them, and
// row breaks only where they compete.
struct PointTrace {
  std::string site;                                 // "before_layer", …
  int layer = -1;                                   // -1 where the site has none
  int64_t generated = 0;                            // with which generated token, 1, 2, …; 0: in prefill
  std::vector<int64_t> kept;                        // image tokens alive after it, as they were
  std::vector<std::vector<int64_t>> kept_per_head;  // at "cache", in place of `kept`

  // The rest is there in a trace only.
  std::vector<int64_t> dropped;     // alive before it and not in `kept`; at "cache": in no head's list
  std::vector<int64_t> candidates;  // what the point judged
  std::vector<float> scores;        // one a candidate; empty where the method has none
  // Other numbers of the decision, by name: thresholds, masses.
  std::vector<std::pair<std::string, std::vector<float>>> notes;
  // The budget as it was spent: image tokens of each image after the point, merged ones and competing row breaks among
  // them; at "cache", of one KV head.
  std::vector<int64_t> tokens_per_image;
  // The sequence after the point, text too (at "cache" the residual stream, which loses nothing there).
  std::vector<int64_t> source;                    // -1: a new token without a place of its own
  std::vector<std::vector<int64_t>> position_id;  // [1 or 3][tokens] as RoPE sees them from here on
};

}  // namespace espalier
