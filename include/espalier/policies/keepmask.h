// SPDX-License-Identifier: Apache-2.0
// Kept sets made elsewhere, in the form of a replay result: which image tokens are alive after which point. The policy
// applies them; it judges nothing. Merged tokens enter with the vectors of the file beside it (`merged`,
// `merged_source`); of one without a place the result must also say whose facts it takes (`merged_position_from`, which
// `espalier replay` writes), and after such a one no later point can be applied: its set could not name the token.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "espalier/pruning.h"

namespace espalier {

struct KeptPoint {
  ActPoint point = {};
  std::vector<int64_t> kept = {};                        // source indices of all image tokens alive after it, ascending
  std::vector<std::vector<int64_t>> kept_per_head = {};  // at the cache, in place of `kept`: one list per KV head
  // Where vectors entered: all image tokens after the point, crop by crop and in a crop in the order of the sequence
  // (before a decoder layer image by image), those of `kept` among them. Undefined: none entered.
  at::Tensor vectors = {};            // float32 [r, d]: at kVisionOutput of the tower's width, else of the decoder's
  std::vector<int64_t> sources = {};  // [r] source index each stands at, -1: none
  std::vector<int64_t> position_from = {};  // [r] source index of the token whose position id, image and crop it takes
};

struct KeptSets {
  std::string file;  // as option `file` names it
  std::vector<KeptPoint> points;
};

struct KeepmaskOptions {
  KeptSets sets = {};
  bool row_breaks_compete = false;  // true: the sets list row breaks too
  CommonOptions common = {};
};

PolicyPtr make_keepmask(const KeepmaskOptions& options);

}  // namespace espalier
