// SPDX-License-Identifier: Apache-2.0
// One line on stderr that shows how far a piece of work is, and when it will have come to its end. Prints nothing
// unless stderr is a terminal.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

namespace espalier::cli {

class TerminalProgress {
 public:
  TerminalProgress();
  ~TerminalProgress() { clear(); }
  TerminalProgress(const TerminalProgress&) = delete;
  TerminalProgress& operator=(const TerminalProgress&) = delete;

  void show(std::string_view stage, int64_t done, int64_t total);
  void clear();  // before anything else goes to the terminal

 private:
  using Clock = std::chrono::steady_clock;
  std::string estimate(Clock::time_point now, int64_t done, int64_t total) const;

  bool is_terminal_;
  bool is_drawn_ = false;
  std::string stage_;
  Clock::time_point drawn_at_;
  Clock::time_point began_;  // of the stage, where so many were done
  int64_t done_at_begin_ = 0;
};

}  // namespace espalier::cli
