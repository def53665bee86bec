// SPDX-License-Identifier: Apache-2.0
#include "cli/terminal_progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace espalier::cli {

TerminalProgress::TerminalProgress() : is_terminal_(::isatty(STDERR_FILENO) == 1) {}

void TerminalProgress::show(std::string_view stage, int64_t done, int64_t total) {
  if (!is_terminal_ || stage == "decode" || total <= 0) return;  // while it decodes, the text itself is the progress
  const Clock::time_point now = Clock::now();
  const bool is_new = stage != stage_;
  if (!is_new && done < total && now - drawn_at_ < std::chrono::milliseconds(50)) return;
  constexpr int64_t kWidth = 30;
  const auto filled = static_cast<size_t>(std::clamp<int64_t>(kWidth * done / total, 0, kWidth));
  const std::string bar = std::string(filled, '#') + std::string(kWidth - filled, '.');
  std::fprintf(stderr, "\r\033[K%-8.*s [%s] %lld/%lld", static_cast<int>(stage.size()), stage.data(), bar.c_str(),
               static_cast<long long>(done), static_cast<long long>(total));
  std::fflush(stderr);
  stage_ = stage;
  drawn_at_ = now;
  is_drawn_ = true;
}

void TerminalProgress::clear() {
  if (!is_drawn_) return;
  std::fputs("\r\033[K", stderr);
  std::fflush(stderr);
  is_drawn_ = false;
}

}  // namespace espalier::cli
