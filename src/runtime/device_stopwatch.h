// SPDX-License-Identifier: Apache-2.0
// Time of a stage that is left and entered again, where the device may work behind the host's back: its stream is
// marked at both ends, and nothing waits for it before the sum is asked for. On the CPU the wall clock. Not for stages
// without tensors: stopwatch.h.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <vector>

#include "runtime/stopwatch.h"

namespace espalier {

class DeviceStopwatch {
 public:
  explicit DeviceStopwatch(c10::Device device, Stopwatch::Start start_now = Stopwatch::kRunning)
      : device_(device), host_(Stopwatch::kStopped) {
    if (start_now == Stopwatch::kRunning) start();
  }

  void start() {
    mark([this] { host_.start(); });
  }
  void stop() {
    mark([this] { host_.stop(); });
  }

  // Of a stopped watch. Waits for the device to reach the last stop.
  double milliseconds() const {
    if (device_.is_cpu()) return host_.milliseconds();
    double total = 0;
    if (!marks_.empty()) marks_.back().synchronize();
    for (size_t i = 0; i + 1 < marks_.size(); i += 2) total += marks_[i].elapsedTime(marks_[i + 1]);
    return total;
  }

 private:
  template <typename OnHost>
  void mark(const OnHost& on_host) {
    if (device_.is_cpu()) return on_host();
    marks_.emplace_back(device_.type(), c10::EventFlag::BACKEND_DEFAULT);  // this flag: with time
    marks_.back().record(c10::impl::VirtualGuardImpl(device_.type()).getStream(device_));
  }

  c10::Device device_;
  Stopwatch host_;
  std::vector<c10::Event> marks_;  // start, stop, start, stop …
};

}  // namespace espalier
