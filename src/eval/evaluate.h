// SPDX-License-Identifier: Apache-2.0
// Asks a model the benchmark's questions under several policies, on the same items: greedy free generation graded by
// exact match, and the choice between an item's candidate answers by the first logits. Not here: printing (report.h).
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "espalier/engine.h"
#include "espalier/pruning.h"
#include "eval/statistics.h"
#include "synth/items.h"

namespace espalier::eval {

// What a spec string stands for. Beyond those of make_policy: `oracle:…` (oracle.h), and `random:…` without a seed,
// which is five draws per item.
struct EvalPolicy {
  std::string spec;
  int draws = 1;
  std::function<PolicyPtr(const std::shared_ptr<const synth::Item>& item, uint64_t index, int draw)> make;
  PolicyPtr fixed = {};  // where it is the same for all items
};
// `make_policy` reads all other specs. Throws Error as it does.
EvalPolicy eval_policy(const std::string& spec, const std::function<PolicyPtr(const std::string&)>& make_policy);

// One answer to one item.
struct EvalAnswer {
  std::string suite, cell;
  std::optional<synth::Control> control;
  uint64_t item = 0;  // its number in the cell
  std::string policy;
  int draw = 0;
  std::string answer, expected;
  bool is_correct = false;
  std::optional<bool> is_chosen_correctly = {};  // as CellResult counts it
  double tokens = 0;                             // image tokens that enter a decoder layer, mean over layers
  double flops = 0, flops_unpruned = 0;          // as CellResult sums them
};

struct EvalOptions {
  std::vector<EvalPolicy> policies;  // beside the unpruned model, which is always asked
  std::vector<synth::Cell> cells;
  uint64_t seed = 0;
  int64_t items = 200;  // of each cell
  synth::Difficulty difficulty;
  int side = synth::kDefaultSide;  // of the pictures
  bool with_controls = true;       // of the unpruned model
  // Of an earlier run of the same: they count as they stand. Throws Error where one cannot be of this run.
  std::vector<EvalAnswer> known = {};
};

struct CellResult {
  std::string policy, suite, cell;
  std::optional<synth::Control> control;
  double chance = 0;
  int64_t n = 0;  // items times draws
  int64_t correct = 0;
  Interval interval;  // Wilson, of correct / n
  // The candidate with the highest first logit. None where candidates share their first token.
  std::optional<int64_t> chosen_correctly;
  double tokens_mean = 0;     // image tokens that enter a decoder layer, mean over layers and items
  double flops = 0;           // of the decoder's prefill and the policy's signals, mean over items
  double flops_unpruned = 0;  // the same without a policy
  // Of an item asked alone, medians of the timed ones: encode, select and prefill; the last two of them.
  double first_token_ms = 0, select_prefill_ms = 0;
  std::vector<double> scores;            // of each item, in [0, 1]: draws averaged
  std::optional<Difference> difference;  // to unpruned, on the same items; none for unpruned itself
  std::optional<double> relative;        // accuracy over that of unpruned, where that is not 0
  std::optional<double> mcnemar;         // its p value; none for policies of several draws

  double accuracy() const { return n == 0 ? 0 : static_cast<double>(correct) / static_cast<double>(n); }
};

struct EvalResult {
  std::vector<CellResult> cells;                             // cell by cell, the unpruned model first
  std::vector<std::pair<std::string, std::string>> digests;  // suite/cell, SHA-256 of its items; of whole cells
  // False when cancelled: `cells` then ends with the one that was being asked, with the items that every policy has
  // answered.
  bool is_complete = true;
};

struct EvalProgress {
  std::function<void(int64_t done, int64_t total)> show = {};
  std::function<bool()> should_cancel = {};
  // Set: hears every answer that the result counts and that was not known before, and answers are then heard to their
  // end (else a wrong one is ended as soon as it is known to be wrong).
  std::function<void(const EvalAnswer&)> on_answer = {};
};

// Pixels along a side that the model wants: nothing is gained by scaling a drawing.
int side_for(const Engine& engine);

EvalResult evaluate(const Engine& engine, const EvalOptions& options, const EvalProgress& progress);

}  // namespace espalier::eval
