// SPDX-License-Identifier: Apache-2.0
// One line on stderr that shows how far loading, encoding and prefill are. Prints nothing unless stderr is a terminal.
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
  bool is_terminal_;
  bool is_drawn_ = false;
  std::string stage_;
  Clock::time_point drawn_at_;
};

}  // namespace espalier::cli
