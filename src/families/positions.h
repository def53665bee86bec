// SPDX-License-Identifier: Apache-2.0
// Position ids of an unpruned prompt: what each token's rotary embedding turns by.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "espalier/token_layout.h"

namespace espalier {

// On the CPU; and the position of the first token behind the prompt. Both read `segments` alone.
struct PromptPositions {
  at::Tensor ids;  // int64 [n], or [3, n] (time, height, width)
  int64_t next = 0;
};

// 0, 1, 2, …
PromptPositions plain_positions(const PromptLayout& layout);

// Three-part ids. Text counts on in all three; a picture has one time, its rows and columns count from there, and what
// follows goes on behind the longer side.
PromptPositions mrope_positions(const PromptLayout& layout);

}  // namespace espalier
