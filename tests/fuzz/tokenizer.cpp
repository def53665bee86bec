// SPDX-License-Identifier: Apache-2.0
#include "espalier/tokenizer.h"

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "tests/fuzz/scratch.h"
#include "tests/fuzz/targets.h"

namespace espalier::fuzz {

namespace {

// What decoding promises of any ids: token by token it comes to the same text.
void check_stream(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  Tokenizer::Stream stream(tokenizer, /*skip_special=*/false);
  std::string text;
  for (const int32_t id : ids) text += stream.add(id);
  text += stream.finish();
  expect(text == tokenizer.decode(ids), "a stream's pieces are the decoded text");
}

}  // namespace

void run_tokenizer(std::string_view tokenizer_json) {
  write_scratch("tokenizer.json", tokenizer_json);
  may_refuse([&] {
    const Tokenizer tokenizer = Tokenizer::load(scratch_folder());
    for (const char* text :
         {"", "a", "Name the  shape:\n\tblue 12345 it's</s>", "<image>\xc3\xa9 e\xcc\x81 \xf0\x9f\x98\x80"})
      may_refuse([&] { check_stream(tokenizer, tokenizer.encode(text)); });
    for (int32_t id = 0; id < std::min(tokenizer.size(), 64); ++id) static_cast<void>(tokenizer.decode(std::array{id}));
  });
}

void run_encode(std::string_view text) {
  static const std::vector<Tokenizer> tokenizers = [] {
    std::vector<Tokenizer> list;  // byte fallback; Metaspace; byte level
    for (const char* folder : {"models/demo", "tests/golden/llava15", "tests/golden/qwen25vl"})
      list.push_back(Tokenizer::load(source_folder() / folder));
    return list;
  }();
  for (const Tokenizer& tokenizer : tokenizers)
    may_refuse([&] {
      std::vector<int32_t> ids;
      size_t end = 0;
      for (const Tokenizer::Token& token : tokenizer.encode_with_ends(text)) {
        expect(token.end >= end && token.end <= text.size(), "tokens end in order, inside the text");
        end = token.end;
        ids.push_back(token.id);
      }
      expect(end == text.size(), "the last token ends where the text does");
      expect(ids == tokenizer.encode(text), "ids are the same with and without ends");
      check_stream(tokenizer, ids);
    });
}

}  // namespace espalier::fuzz
