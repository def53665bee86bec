// SPDX-License-Identifier: Apache-2.0
// The trained models' tokenizer and chat template as the text of the files of a checkpoint folder: Llama's BPE with
// byte fallback, with merges that make every word of wording.h one token. Other text falls apart into letters and
// bytes. For random models with a larger vocabulary, further ids that only decode. Not here: the folder's config, image
// settings and weights.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "synth/wording.h"

namespace espalier::synth {

struct FolderFile {
  std::string name;  // "tokenizer.json", …
  std::string text;
};

struct DemoTokenizer {
  static constexpr int32_t kUnknown = 0, kBegin = 1, kEnd = 2;  // <unk>, <s>, </s>
  int32_t image = 0;                                            // <image>
  int32_t padding = 0;                                          // <pad>
  int32_t size = 0;                                             // one more than the largest id
  // tokenizer.json, tokenizer_config.json, special_tokens_map.json and chat_template.json.
  std::vector<FolderFile> files;
};

// `size`: so many ids at least. Those that no word takes decode to a space and the number of the id, so that whatever a
// random model samples is text that a client sees arrive; no text encodes to them.
DemoTokenizer demo_tokenizer(int64_t size = 0, Words words = Words::kDemo);

}  // namespace espalier::synth
