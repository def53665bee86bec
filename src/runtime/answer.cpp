// SPDX-License-Identifier: Apache-2.0
#include "runtime/answer.h"

#include <algorithm>
#include <string_view>

namespace espalier {

Answer::Answer(const Tokenizer& tokenizer, const GenerationOptions& options, std::vector<int32_t> eos_ids,
               size_t request, const TextCallback& on_text)
    : stream_(tokenizer, /*skip_special=*/true),
      options_(options),
      eos_ids_(std::move(eos_ids)),
      request_(request),
      on_text_(on_text) {
  if (options.max_new_tokens == 0) finish_ = FinishReason::kLength;
}

void Answer::add(int32_t id) {
  ids_.push_back(id);
  take(stream_.add(id));
  if (is_finished()) return;
  if (!options_.ignore_eos && std::ranges::count(eos_ids_, id) > 0) return finish(FinishReason::kEos);
  if (std::ssize(ids_) >= options_.max_new_tokens) finish(FinishReason::kLength);
}

void Answer::take(const std::string& piece) {
  if (piece.empty()) return;
  const size_t before = text_.size();
  text_ += piece;
  size_t cut = std::string::npos;
  for (const std::string& stop : options_.stop) {
    if (stop.empty()) continue;
    const size_t from = before >= stop.size() ? before - stop.size() + 1 : 0;
    cut = std::min(cut, text_.find(stop, from));
  }
  if (cut != std::string::npos) {
    give_out(cut);
    if (!is_finished()) finish_ = FinishReason::kStopString;
    return;
  }
  give_out(text_.size() - longest_stop_prefix());
}

void Answer::finish(FinishReason reason) {
  take(stream_.finish());
  if (is_finished()) return;
  give_out(text_.size());
  if (!is_finished()) finish_ = reason;
}

void Answer::give_out(size_t up_to) {
  if (up_to <= given_) return;
  const std::string_view piece = std::string_view(text_).substr(given_, up_to - given_);
  given_ = up_to;
  if (!on_text_) return;
  const Continue next = on_text_(request_, piece);
  if (next == Continue::kStop) finish_ = FinishReason::kStopped;
  if (next == Continue::kCancel) finish_ = FinishReason::kCancelled;
}

size_t Answer::longest_stop_prefix() const {
  size_t longest = 0;
  for (const std::string& stop : options_.stop) {
    if (stop.empty()) continue;
    for (size_t length = std::min(stop.size() - 1, text_.size()); length > longest; --length)
      if (std::string_view(text_).substr(text_.size() - length) == std::string_view(stop).substr(0, length))
        longest = length;
  }
  return longest;
}

}  // namespace espalier
