// SPDX-License-Identifier: Apache-2.0
// The measuring of `espalier bench`: one prompt under several policies in turn, so that a drift of the machine hits all
// of them alike, again and again until the times are known well enough. Not here: what is shown of it (bench_table.h).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/spread.h"
#include "cli/terminal_progress.h"
#include "espalier/engine.h"
#include "espalier/pruning.h"

namespace espalier::cli {

// One point of the axes.
struct BenchSetting {
  std::string name;  // "4 shots", or the prompt's file
  Prompt prompt;
  int64_t shots = -1;  // of the drawn prompt; -1: the caller's own
  int64_t side = -1;   // pixels along a side of the drawn pictures
  int64_t requests = 1;
  int64_t new_tokens = 8;
};

struct BenchPlan {
  int repeat = 5;           // counted rounds at least
  int max_repeat = 15;      // and at most, where times are not known to
  double max_noise = 0.05;  // half the interval of each median, of the median
};

// Milliseconds.
struct BenchSample {
  double encode = 0, select = 0, prefill = 0;  // with several requests at once, means over them
  double select_prefill = 0;                   // with several requests at once: all of `first_token` but their encoding
  double first_token = 0;  // encode, select and prefill; with several: until the last of them has its first token
  double per_token = 0;    // of a later token of each request
  double whole = 0;        // until the last answer has ended
};

struct BenchSeries {
  std::string policy;  // as it was written
  PolicyPtr custom;    // what that stands for
  std::vector<BenchSample> samples = {};
  Stats stats = {};  // of the last run: counts do not change between runs

  Spread spread(double BenchSample::*field) const;
  // Of first_token and per_token the greater.
  double noise() const;
  bool is_noisy() const;  // the slow tenth of the runs takes more than 1.3 times as long as the fast tenth
};

struct BenchResult {
  std::vector<BenchSeries> series;  // those that have been measured at least once
  int rounds = 0;                   // that every policy has run
  double cpu_per_wall = 0;          // seconds of processor time in a second of the counted runs
  bool is_complete = true;          // false: Ctrl-C came
};

BenchResult run_bench(const Engine& engine, const BenchSetting& setting, const std::vector<BenchSeries>& policies,
                      const BenchPlan& plan, TerminalProgress& progress);

// The drawn prompt: examples of a picture, a question and an answer, then one more question.
Chat drawn_prompt(int64_t shots, int64_t side);

}  // namespace espalier::cli
