// SPDX-License-Identifier: Apache-2.0
// A conversation. Each turn is one more example after those that were, and what they came to is used again: a turn
// costs what is new, and what the policy looks at anew. Under a policy that looks at the question, the tokens of
// earlier pictures are chosen again in every turn, so that what one question did not need comes back for the next. No
// libtorch type appears here.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "espalier/engine.h"
#include "espalier/generation.h"

namespace espalier {

// The same for all turns of a session.
struct SessionOptions {
  std::string policy = "none";                       // a spec string, or
  std::shared_ptr<const PruningPolicy> custom = {};  // a policy of the caller's own, which then wins
  GenerationOptions generation = {};
  std::string system = {};  // what stands before the first turn; empty: nothing
  bool sticky = false;      // true: tokens of a picture that a turn dropped stay away in later turns
};

// One thread at a time; several sessions of one engine run together. It must not outlive its engine.
class Session {
 public:
  // Throws Error for a policy that does not exist.
  explicit Session(const Engine& engine, const SessionOptions& options = {});
  Session(Session&&) noexcept;
  Session& operator=(Session&&) noexcept;
  ~Session();

  // The user's next turn, pictures and text in order, and the model's answer, which then belongs to the conversation.
  // A turn that is cancelled or throws leaves the conversation as it was. Answers are those of a request with the whole
  // conversation as its prompt; Stats::reused_tokens says how much of that was not computed again.
  Result ask(std::vector<Part> turn, const Callbacks& callbacks = {});
  Result ask(const std::string& text, const Callbacks& callbacks = {});

  const Chat& chat() const;  // all turns so far

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace espalier
