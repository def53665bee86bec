// SPDX-License-Identifier: Apache-2.0
// The only file that includes spdlog: libtorch ships a newer fmt in its include folder, which shadows the one that
// spdlog was built with, so this file is compiled without libtorch (src/CMakeLists.txt).
#include "base/log.h"

#include <spdlog/logger.h>
#include <spdlog/sinks/stdout_color_sinks.h>

#include <memory>

namespace espalier {

namespace {

// Not in spdlog's registry: a program that uses spdlog itself keeps that for its own names.
spdlog::logger& logger() {
  static spdlog::logger instance = [] {
    spdlog::logger made("espalier", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
    made.set_pattern("%n: %^%l%$: %v");
    made.set_level(spdlog::level::warn);
    return made;
  }();
  return instance;
}

spdlog::string_view_t view(std::string_view text) {
  return {text.data(), text.size()};
}

}  // namespace

void set_log_level(LogLevel level) {
  logger().set_level(level == LogLevel::kInfo ? spdlog::level::info : spdlog::level::warn);
}

void log_info(std::string_view message) {
  logger().log(spdlog::level::info, view(message));
}
void log_warning(std::string_view message) {
  logger().log(spdlog::level::warn, view(message));
}

}  // namespace espalier
