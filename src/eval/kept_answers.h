// SPDX-License-Identifier: Apache-2.0
// The file of `eval --answers`, one line per answer, and what a run that goes on takes from it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/line_file.h"
#include "eval/evaluate.h"

namespace espalier::eval {

// What was asked of whom: lines of different runs are not counted together.
struct AnsweredRun {
  std::string model, dtype, difficulty;
  uint64_t seed = 0;
  int side = 0;
  bool operator==(const AnsweredRun&) const = default;
};

// One line, with its end.
std::string to_json_line(const AnsweredRun& run, const EvalAnswer& answer);

class KeptAnswers {
 public:
  // Opens what is there, or makes it. Throws as LineFile does, and Error when a line is no answer or one of another
  // run.
  KeptAnswers(std::filesystem::path file, AnsweredRun run);

  const std::vector<EvalAnswer>& found() const { return found_; }  // when it was opened
  void add(const EvalAnswer& answer) { lines_.add(to_json_line(run_, answer)); }

 private:
  LineFile lines_;
  AnsweredRun run_;
  std::vector<EvalAnswer> found_;
};

}  // namespace espalier::eval
