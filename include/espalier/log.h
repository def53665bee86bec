// SPDX-License-Identifier: Apache-2.0
// What an engine says while it works, beside its results. Errors are not logged: they are exceptions.
#pragma once

#include <cstdint>
#include <functional>
#include <string_view>

namespace espalier {

enum class LogLevel : uint8_t {
  kVerbose,  // what was loaded and how it will run: family, chat template, kernels, memory
  kWarning,  // what works, but may not be what was meant
  kSilent,   // as a level of an engine: nothing is said
};

// Gets one line of UTF-8 without its end. Called by any thread that uses the engine, one call at a time; `message`
// ends with the call. It must not call the engine. What it throws ends the call that had something to say.
using LogSink = std::function<void(LogLevel level, std::string_view message)>;

}  // namespace espalier
