// SPDX-License-Identifier: Apache-2.0
// What a checkpoint wants of generation when the user says nothing: end tokens and sampling defaults. How they are
// applied is the sampler's business.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <vector>

namespace espalier {

struct GenerationConfig {
  std::vector<int32_t> eos_ids;  // generation ends behind any of them; may be empty
  std::optional<int32_t> pad_id;
  bool do_sample = false;
  double temperature = 1.0;  // > 0
  int64_t top_k = 50;        // 0: off
  double top_p = 1.0;        // in (0, 1]
  double repetition_penalty = 1.0;
};

// generation_config.json, or plain defaults without one. End and padding tokens that it does not name come from
// config.json (its top level, then text_config). Throws Error naming file and field for what is malformed.
GenerationConfig read_generation_config(const std::filesystem::path& folder);

}  // namespace espalier
