// SPDX-License-Identifier: Apache-2.0
// Results in the form of OpenAI's chat and text completions, whole and as the events of a stream.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "espalier/generation.h"
#include "espalier/tokenizer.h"
#include "serve/asked.h"

namespace espalier::serve {

// What all answers to one request share.
struct AnswerForm {
  AnswerForm(const Tokenizer& of, const Asked& asked, std::string model);

  // Of all samples, in order.
  std::string whole(const std::vector<const Result*>& samples) const;

  // Events of a stream, each with its blank line. `tokens`: those whose text the piece is, where they were asked for.
  std::string first_event(int sample) const;  // the role; nothing for text completions
  std::string piece_event(int sample, const std::string& piece, std::span<const TokenLogprobs> tokens);
  std::string end_event(int sample, const Result& result, std::span<const TokenLogprobs> tokens);
  std::string usage_event(const std::vector<const Result*>& samples) const;  // nothing unless it was asked for
  static std::string error_event(const std::string& json);
  static std::string done_event();

 private:
  std::string event(int sample, const std::string& piece, bool is_first, std::span<const TokenLogprobs> tokens,
                    const char* finish, const Result* result) const;

  const Tokenizer& tokenizer_;
  const bool is_chat_, tells_usage_, tells_stats_, tells_logprobs_;
  const std::string id_, model_, policy_;
  const int64_t created_;
  std::vector<size_t> offsets_;  // of each sample, in its text so far; of text completions
};

}  // namespace espalier::serve
