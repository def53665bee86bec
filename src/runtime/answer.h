// SPDX-License-Identifier: Apache-2.0
// The text of one request as it grows: token by token, until an end token, a stop string, the length or the caller ends
// it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "espalier/generation.h"
#include "espalier/tokenizer.h"

namespace espalier {

class Answer {
 public:
  Answer(const Tokenizer& tokenizer, const GenerationOptions& options, std::vector<int32_t> eos_ids, size_t request,
         const TextCallback& on_text);

  void add(int32_t id);
  void cancel() { finish_ = FinishReason::kCancelled; }
  bool is_finished() const { return finish_.has_value(); }

  const std::vector<int32_t>& ids() const { return ids_; }
  std::string text() const { return text_.substr(0, given_); }  // the pieces that the callback has seen, joined
  FinishReason finish_reason() const { return *finish_; }

 private:
  void take(const std::string& piece);
  void give_out(size_t up_to);
  void finish(FinishReason reason);
  size_t longest_stop_prefix() const;  // bytes at the end of the text that could still become a stop string

  Tokenizer::Stream stream_;
  const GenerationOptions& options_;
  std::vector<int32_t> eos_ids_;
  size_t request_;
  const TextCallback& on_text_;
  std::vector<int32_t> ids_;
  std::string text_;
  size_t given_ = 0;                // bytes of text_ that the callback has seen
  size_t end_ = std::string::npos;  // where a stop string cut the text
  std::optional<FinishReason> finish_;
};

}  // namespace espalier
