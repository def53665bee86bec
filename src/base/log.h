// SPDX-License-Identifier: Apache-2.0
// What Espalier tells people who watch it run: the logger "espalier" on stderr. Results never go through it, and
// neither do errors, which are exceptions.
#pragma once

#include <cstdint>
#include <string_view>

namespace espalier {

enum class LogLevel : uint8_t { kInfo, kWarning };

void set_log_level(LogLevel level);  // of the process; kWarning at the start
void log_info(std::string_view message);
void log_warning(std::string_view message);

}  // namespace espalier
