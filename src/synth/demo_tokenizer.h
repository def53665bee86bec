// SPDX-License-Identifier: Apache-2.0
// The demo model's tokenizer and chat template as the text of the files of a checkpoint folder: Llama's BPE with byte
// fallback, with merges that make every word of wording.h one token. Other text falls apart into letters and bytes.
// Not here: the folder's config, image settings and weights.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

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

DemoTokenizer demo_tokenizer();

}  // namespace espalier::synth
