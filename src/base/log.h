// SPDX-License-Identifier: Apache-2.0
// Where an engine says what include/espalier/log.h describes. Copies share the sink and its turn.
#pragma once

#include <memory>
#include <mutex>
#include <string_view>

#include "espalier/log.h"

namespace espalier {

class Log {
 public:
  // Without a sink: the logger "espalier" on stderr.
  explicit Log(LogLevel lowest = LogLevel::kWarning, LogSink sink = {});

  bool says(LogLevel level) const { return level >= lowest_ && level < LogLevel::kSilent; }
  void verbose(std::string_view message) const { say(LogLevel::kVerbose, message); }
  void warning(std::string_view message) const { say(LogLevel::kWarning, message); }

 private:
  struct Sink {
    std::mutex turn;
    LogSink say;
  };
  void say(LogLevel level, std::string_view message) const;

  LogLevel lowest_;
  std::shared_ptr<Sink> sink_;
};

}  // namespace espalier
