// SPDX-License-Identifier: Apache-2.0
// A prompt and the signals of a run on it that no model made: random arrays in the form of a recording, from which any
// signal can be answered. For the properties that policies are tested for.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "espalier/pruning.h"
#include "espalier/token_layout.h"

namespace espalier {

struct MadeUpRun {
  std::shared_ptr<const PromptLayout> prompt;
  std::map<std::string, at::Tensor> arrays;  // names and shapes of signals.safetensors
  static constexpr int64_t kGenerated = 7;   // tokens of the answer
};

// Two tokens of system text, then each image with `text_tokens` behind it as an example of its own; the last is the
// query.
struct MadeUpPrompt {
  std::vector<GridSize> images;
  std::vector<int64_t> pinned = {};  // indices in the sequence
  bool has_tiles = false;            // each image with a full view, and 1 x 2 tiles of its grid stitched row by row
  static constexpr int64_t kSystemTokens = 2;
  static constexpr int64_t kTextTokens = 3;
};

MadeUpRun make_up_run(const ModelFacts& model, const MadeUpPrompt& prompt, uint64_t seed, at::Device device = at::kCPU);

// What is said of the tokens at which `is_outside` is true becomes what another draw says of them. Class rows are those
// of crops; a crop of which no patch is inside is outside.
MadeUpRun redrawn(const MadeUpRun& run, const ModelFacts& model, const MadeUpPrompt& prompt, uint64_t seed,
                  const std::vector<bool>& is_outside);

// The same run with tokens moved: what was said of token t is said of where[t]. Only for prompts whose layout stays
// what it is (images of one shape that change places, without tiles).
MadeUpRun moved(const MadeUpRun& run, const std::vector<int64_t>& where);

}  // namespace espalier
