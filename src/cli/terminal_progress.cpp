// SPDX-License-Identifier: Apache-2.0
#include "cli/terminal_progress.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

namespace espalier::cli {

namespace {

// "7 s", "3 min", "2 h 05 min".
std::string time_left(double seconds) {
  const long long whole = std::llround(seconds);
  if (whole < 60) return std::to_string(whole) + " s";
  const long long minutes = std::llround(seconds / 60);
  if (minutes < 60) return std::to_string(minutes) + " min";
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%lld h %02lld min", minutes / 60, minutes % 60);
  return text.data();
}

}  // namespace

TerminalProgress::TerminalProgress() : is_terminal_(::isatty(STDERR_FILENO) == 1) {}

void TerminalProgress::show(std::string_view stage, int64_t done, int64_t total) {
  if (!is_terminal_ || stage == "decode" || total <= 0) return;  // while it decodes, the text itself is the progress
  const Clock::time_point now = Clock::now();
  const bool is_new = stage != stage_;
  if (is_new || done < done_at_begin_) {
    began_ = now;
    done_at_begin_ = done;
  }
  if (!is_new && done < total && now - drawn_at_ < std::chrono::milliseconds(50)) return;
  constexpr int64_t kWidth = 30;
  const auto filled = static_cast<size_t>(std::clamp<int64_t>(kWidth * done / total, 0, kWidth));
  const std::string bar = std::string(filled, '#') + std::string(kWidth - filled, '.');
  std::fprintf(stderr, "\r\033[K%-8.*s [%s] %lld/%lld%s", static_cast<int>(stage.size()), stage.data(), bar.c_str(),
               static_cast<long long>(done), static_cast<long long>(total), estimate(now, done, total).c_str());
  std::fflush(stderr);
  stage_ = stage;
  drawn_at_ = now;
  is_drawn_ = true;
}

// Nothing before two seconds have shown how fast it goes.
std::string TerminalProgress::estimate(Clock::time_point now, int64_t done, int64_t total) const {
  const double seconds = std::chrono::duration<double>(now - began_).count();
  if (seconds < 2 || done <= done_at_begin_ || done >= total) return {};
  const double rate = static_cast<double>(done - done_at_begin_) / seconds;
  return ", " + time_left(static_cast<double>(total - done) / rate) + " left";
}

void TerminalProgress::clear() {
  if (!is_drawn_) return;
  std::fputs("\r\033[K", stderr);
  std::fflush(stderr);
  is_drawn_ = false;
}

}  // namespace espalier::cli
