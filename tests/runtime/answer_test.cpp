// SPDX-License-Identifier: Apache-2.0
// How an answer's text grows and what ends it. The oracle is the tokenizer's decode of all ids so far and plain string
// search.
#include "runtime/answer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "tests/support/tiny_llava.h"

namespace espalier {
namespace {

constexpr int32_t kEos = 2;
const Tokenizer& tokenizer() {
  return test::tiny_llava().tokenizer;
}
std::vector<int32_t> ids_of(const std::string& text) {
  return tokenizer().encode(text, /*add_special=*/false);
}

GenerationOptions stopping(std::vector<std::string> at) {
  GenerationOptions options;
  options.stop = std::move(at);
  return options;
}

struct Outcome {
  std::vector<std::string> pieces;
  std::string joined, text;
  std::vector<int32_t> ids;
  FinishReason reason = FinishReason::kLength;
  bool finished = false;
};

// Feeds ids until the answer ends.
Outcome feed(const std::vector<int32_t>& ids, const GenerationOptions& options,
             const std::function<Continue(const std::string& so_far)>& reply = {}) {
  Outcome out;
  const TextCallback on_text = [&](size_t request, std::string_view piece) {
    EXPECT_EQ(request, 5U);
    EXPECT_FALSE(piece.empty());
    out.pieces.emplace_back(piece);
    out.joined += piece;
    return reply ? reply(out.joined) : Continue::kGo;
  };
  Answer answer(tokenizer(), options, {kEos}, 5, on_text);
  for (const int32_t id : ids) {
    if (answer.is_finished()) break;
    answer.add(id);
  }
  out.finished = answer.is_finished();
  if (out.finished) out.reason = answer.finish_reason();
  out.text = answer.text();
  out.ids = answer.ids();
  EXPECT_EQ(out.joined, out.text);  // whatever ends it, the callback has seen what the result says
  return out;
}

const std::string kText = "What is the red cat doing? Near the wall, 12 cats!";

TEST(Answer, WithoutStopStringsEveryTokenIsGivenOutAtOnce) {
  const std::vector<int32_t> ids = ids_of(kText);
  std::string joined;
  const TextCallback on_text = [&](size_t, std::string_view piece) {
    joined += piece;
    return Continue::kGo;
  };
  GenerationOptions options;
  options.max_new_tokens = std::ssize(ids);
  Answer answer(tokenizer(), options, {}, 0, on_text);
  for (size_t i = 0; i < ids.size(); ++i) {
    EXPECT_FALSE(answer.is_finished());
    answer.add(ids[i]);
    EXPECT_EQ(joined, tokenizer().decode(std::span(ids).first(i + 1), true));
  }
  EXPECT_EQ(answer.finish_reason(), FinishReason::kLength);
  EXPECT_EQ(answer.text(), kText);
}

// Every substring as the stop string: wherever it lies among the tokens, the text ends before its first occurrence, and
// generation with the token that completes it.
TEST(Answer, StopStringsAcrossTokenBorders) {
  const std::vector<int32_t> ids = ids_of(kText);
  for (size_t begin = 0; begin < kText.size(); ++begin)
    for (size_t length = 1; begin + length <= kText.size(); length += 1 + length / 3) {
      const std::string stop = kText.substr(begin, length);
      SCOPED_TRACE("\"" + stop + "\"");
      size_t used = 1;
      while (tokenizer().decode(std::span(ids).first(used), true).find(stop) == std::string::npos) ++used;
      const Outcome out = feed(ids, stopping({stop}));
      EXPECT_EQ(out.reason, FinishReason::kStopString);
      EXPECT_EQ(out.text, kText.substr(0, kText.find(stop)));
      EXPECT_EQ(out.ids.size(), used);
    }
}

TEST(Answer, TheFirstOfSeveralStopStringsWins) {
  const std::vector<int32_t> ids = ids_of(kText);
  EXPECT_EQ(feed(ids, stopping({"wall", "cat", "doing"})).text, "What is the red ");
  EXPECT_EQ(feed(ids, stopping({"red cat doing", "cat", ""})).text,
            "What is the red ");  // complete first; an empty one is none
  EXPECT_EQ(feed(ids, stopping({"t"})).text, "Wha");
}

// What could still become a stop string is held back, and given out when it does not.
TEST(Answer, HoldsBackOnlyWhatCouldBecomeAStopString) {
  const std::vector<int32_t> ids = ids_of(kText);
  GenerationOptions options = stopping({"the red cow", "doing!"});
  options.max_new_tokens = std::ssize(ids);
  std::string seen;
  const Outcome out = feed(ids, options, [&](const std::string& so_far) {
    for (const std::string& stop : options.stop)
      for (size_t length = 1; length <= stop.size(); ++length)
        EXPECT_FALSE(so_far.ends_with(stop.substr(0, length)) && so_far.size() < kText.size()) << so_far;
    return Continue::kGo;
  });
  EXPECT_EQ(out.reason, FinishReason::kLength);
  EXPECT_EQ(out.text, kText);
  // At the very end nothing can follow: a tail that looks like a stop string's beginning comes out.
  GenerationOptions tail = stopping({"cats!?"});
  tail.max_new_tokens = std::ssize(ids);
  EXPECT_EQ(feed(ids, tail).text, kText);
}

TEST(Answer, PiecesAreWholeCharacters) {
  const std::string text = "caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x99\x82 \xe6\xbc\xa2";
  const std::vector<int32_t> ids = ids_of(text);
  GenerationOptions options = stopping({"\xe2\x82\xac\xe2\x82\xac"});  // begins like the euro sign
  options.max_new_tokens = std::ssize(ids);
  const Outcome out = feed(ids, options);
  EXPECT_EQ(out.text, text);
  for (const std::string& piece : out.pieces)
    EXPECT_NO_THROW(tokenizer().encode(piece)) << piece;  // it refuses what is not UTF-8
}

// A character that the length cuts in two comes out as what decode() makes of it.
TEST(Answer, UnfinishedCharacterAtTheEnd) {
  const std::vector<int32_t> ids = ids_of("a\xf0\x9f\x99\x82");
  GenerationOptions options;
  options.max_new_tokens = std::ssize(ids) - 1;
  const Outcome out = feed(ids, options);
  EXPECT_EQ(out.reason, FinishReason::kLength);
  EXPECT_EQ(out.text, tokenizer().decode(std::span(ids).first(ids.size() - 1), true));
  EXPECT_NE(out.text, "a");
}

TEST(Answer, EndTokenIsAmongTheIdsAndNotInTheText) {
  std::vector<int32_t> ids = ids_of("red cat");
  const size_t length = ids.size();
  ids.push_back(kEos);
  ids.push_back(ids[0]);
  const Outcome out = feed(ids, stopping({"cat sits"}));  // "cat" is held back until the end
  EXPECT_EQ(out.reason, FinishReason::kEos);
  EXPECT_EQ(out.text, "red cat");
  ASSERT_EQ(out.ids.size(), length + 1);
  EXPECT_EQ(out.ids.back(), kEos);
}

TEST(Answer, AnyOfSeveralEndTokens) {
  const std::vector<int32_t> ids = ids_of("red cat");
  const TextCallback none;
  const GenerationOptions options;
  Answer answer(tokenizer(), options, {77, ids[0]}, 0, none);
  answer.add(ids[0]);
  EXPECT_TRUE(answer.is_finished());
  EXPECT_EQ(answer.finish_reason(), FinishReason::kEos);
}

TEST(Answer, IgnoreEosGoesOn) {
  std::vector<int32_t> ids = ids_of("red");
  ids.push_back(kEos);
  const std::vector<int32_t> more = ids_of("cat");
  ids.insert(ids.end(), more.begin(), more.end());
  GenerationOptions options;
  options.ignore_eos = true;
  options.max_new_tokens = std::ssize(ids);
  const Outcome out = feed(ids, options);
  EXPECT_EQ(out.reason, FinishReason::kLength);
  EXPECT_EQ(out.ids, ids);
  EXPECT_EQ(out.text, tokenizer().decode(ids, true));
}

TEST(Answer, LengthZeroAndOne) {
  GenerationOptions options;
  options.max_new_tokens = 0;
  Outcome out = feed(ids_of(kText), options);
  EXPECT_TRUE(out.finished);
  EXPECT_EQ(out.reason, FinishReason::kLength);
  EXPECT_TRUE(out.ids.empty());
  options.max_new_tokens = 1;
  out = feed(ids_of(kText), options);
  EXPECT_EQ(out.ids.size(), 1U);
}

TEST(Answer, AStopStringInTheLastTokenIsAStopString) {
  const std::vector<int32_t> ids = ids_of("red cat");
  GenerationOptions options = stopping({"cat"});
  options.max_new_tokens = std::ssize(ids);
  EXPECT_EQ(feed(ids, options).reason, FinishReason::kStopString);
}

TEST(Answer, TheCallbackStopsOrCancels) {
  const std::vector<int32_t> ids = ids_of(kText);
  for (const auto& [reply, reason] :
       {std::pair{Continue::kStop, FinishReason::kStopped}, std::pair{Continue::kCancel, FinishReason::kCancelled}}) {
    const auto after_red = [r = reply](const std::string& so_far) {
      return so_far.find("red") == std::string::npos ? Continue::kGo : r;
    };
    const Outcome out = feed(ids, stopping({}), after_red);
    EXPECT_EQ(out.reason, reason);
    EXPECT_EQ(out.pieces.back().find("cat"), std::string::npos);
    EXPECT_LT(out.ids.size(), ids.size());
    // A stop string in the same token does not change what the caller said.
    EXPECT_EQ(feed(ids, stopping({"red"}), [r = reply](const std::string&) { return r; }).reason, reason);
  }
}

// Bytes held back for a stop string are in the result only if the caller saw them.
TEST(Answer, WhatWasHeldBackWhenTheCallerStops) {
  const std::vector<int32_t> ids = ids_of(kText);
  for (const Continue reply : {Continue::kStop, Continue::kCancel}) {
    const Outcome out = feed(ids, stopping({"hat was"}), [&](const std::string&) { return reply; });
    EXPECT_EQ(out.pieces.size(), 1U);
  }
}

// The last piece may come in two parts (what the decoder held back, what a stop string held back): a caller who stops
// at the first is not called again.
TEST(Answer, NoCallBehindAStop) {
  const std::vector<int32_t> ids = ids_of("cat\xf0\x9f\x99\x82");
  GenerationOptions options = stopping({"\xef\xbf\xbd!"});
  options.max_new_tokens =
      std::ssize(ids) - 1;  // the character is cut; the last of its U+FFFD looks like the stop string's beginning
  int calls = 0;
  const Outcome whole = feed(ids, options, [&](const std::string&) {
    ++calls;
    return Continue::kGo;
  });
  EXPECT_EQ(whole.text, tokenizer().decode(std::span(ids).first(ids.size() - 1), true));
  for (int stop_at = 1; stop_at <= calls; ++stop_at) {
    int seen = 0;
    const Outcome out =
        feed(ids, options, [&](const std::string&) { return ++seen == stop_at ? Continue::kCancel : Continue::kGo; });
    EXPECT_EQ(seen, stop_at);
    EXPECT_EQ(out.reason, FinishReason::kCancelled);
  }
}

TEST(FinishReasonTest, HasAName) {
  EXPECT_EQ(name_of(FinishReason::kEos), "eos");
  EXPECT_EQ(name_of(FinishReason::kLength), "length");
  EXPECT_EQ(name_of(FinishReason::kStopString), "stop_string");
  EXPECT_EQ(name_of(FinishReason::kStopped), "stopped");
  EXPECT_EQ(name_of(FinishReason::kCancelled), "cancelled");
}

}  // namespace
}  // namespace espalier
