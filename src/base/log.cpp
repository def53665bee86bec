// SPDX-License-Identifier: Apache-2.0
// The only file that includes spdlog: libtorch ships a newer fmt in its include folder, which shadows the one that
// spdlog was built with, so this file is compiled without libtorch (src/CMakeLists.txt).
#include "base/log.h"

#include <spdlog/logger.h>
#include <spdlog/sinks/stdout_color_sinks.h>

#include <utility>

namespace espalier {

namespace {

LogSink stderr_sink() {
  // Not in spdlog's registry: a program that uses spdlog itself keeps that for its own names.
  const auto logger =
      std::make_shared<spdlog::logger>("espalier", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
  logger->set_pattern("%n: %^%l%$: %v");
  return [logger](LogLevel level, std::string_view message) {
    logger->log(level == LogLevel::kWarning ? spdlog::level::warn : spdlog::level::info,
                spdlog::string_view_t(message.data(), message.size()));
  };
}

}  // namespace

Log::Log(LogLevel lowest, LogSink sink) : lowest_(lowest), sink_(std::make_shared<Sink>()) {
  sink_->say = sink ? std::move(sink) : stderr_sink();
}

void Log::say(LogLevel level, std::string_view message) const {
  if (!says(level)) return;
  const std::lock_guard turn(sink_->turn);
  sink_->say(level, message);
}

}  // namespace espalier
