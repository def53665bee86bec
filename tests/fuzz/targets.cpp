// SPDX-License-Identifier: Apache-2.0
#include "tests/fuzz/targets.h"

#include <algorithm>

namespace espalier::fuzz {

std::span<const Target> targets() {
  // Decoders of pictures have nothing in common: each gets its own seeds and its own time.
  static constexpr Target kTargets[] = {
      {"safetensors", run_safetensors},
      {"config", run_config},
      {"tokenizer", run_tokenizer},
      {"encode", run_encode},
      {"chat_template", run_chat_template},
      {"messages", run_messages},
      {"jpeg", run_picture},
      {"png", run_picture},
      {"webp", run_picture},
      {"layout", run_layout},
      {"signals", run_signals},
      {"policy_spec", run_policy_spec},
      {"recipe", run_recipe},
      {"atp_weights", run_atp_weights},
      {"keepmask", run_keepmask},
      {"http_body", run_http_body},
  };
  return kTargets;
}

const Target* find_target(std::string_view name) {
  const auto found = std::ranges::find(targets(), name, &Target::name);
  return found == targets().end() ? nullptr : &*found;
}

}  // namespace espalier::fuzz
