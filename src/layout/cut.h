// SPDX-License-Identifier: Apache-2.0
// The only code that makes and changes a layout: from segments, and from a cut.
#pragma once

#include <memory>

#include "espalier/pruning.h"
#include "espalier/token_layout.h"
#include "layout/ranking.h"

namespace espalier {

// Fills the per-token tensors of a layout whose segments, images and query_example are set. position_id defaults to 0,
// 1, …; `pinned` to none. Throws Error when segments leave gaps or contradict the images.
void finish_prompt_layout(PromptLayout& layout, at::Device device);

// Every token from source index `begin` on, as one policy sees it: image_tokens are the patches, with row breaks if
// they compete.
TokenLayout full_layout(std::shared_ptr<const PromptLayout> prompt, bool row_breaks_compete, int64_t begin = 0);
// Its first tokens: those of examples before `example`, which stand in front of all others. Waits for the device.
TokenLayout front_of(const TokenLayout& layout, int example);
// Two behind each other, of the prompt of the second.
TokenLayout joined(const TokenLayout& front, const TokenLayout& back);

// What a cut does to the sequence it was given on.
struct Applied {
  TokenLayout layout;
  // int64 [n']: for each token of the new sequence its index in the old one or, from n on, n + the number of a new
  // vector.
  at::Tensor index;
  at::Tensor facts_from;  // int64 [n'] index in the old sequence of the token whose position id, image and crop it has
  bool has_new_tokens = false;
  at::Tensor new_vectors;  // [r, d] all of cut.added behind each other
  bool unchanged = false;  // nothing left and nothing entered
};

// Throws Error (naming `who`) unless `kept` is int64 [k] of ascending ordinals below m; their values are looked at on
// the CPU only.
void check_kept(const at::Tensor& kept, int64_t m, std::string_view who);

// Throws Error (naming `who`) when the cut is none: indices out of range, not ascending (checked on the CPU only),
// wrong dtype. Row breaks that do not compete stay while a patch of their row stays. With Positions::kCompact ids count
// from `first_position`, and `renumbers` says so where nothing leaves, too.
Applied apply_cut(const TokenLayout& layout, const Cut& cut, Positions positions, std::string_view who,
                  int64_t first_position = 0, bool renumbers = false);

}  // namespace espalier
