// SPDX-License-Identifier: Apache-2.0
// A call whose caller waits for all of its requests.
#pragma once

#include <exception>
#include <latch>
#include <utility>
#include <vector>

#include "runtime/out_of_memory.h"
#include "runtime/request_run.h"

namespace espalier {

class WaitingCall : public Call {
 public:
  WaitingCall(const Callbacks& given, size_t requests)
      : Call(given), results_(requests), left_(static_cast<std::ptrdiff_t>(requests)) {}

  // On the thread that computes. One that failed gives up the others.
  void end(RequestRun& run) {
    if (run.result) {
      results_[run.index] = std::move(*run.result);
      prefix_ = run.sequence.prefix.made.empty() ? run.sequence.prefix.found : run.sequence.prefix.made.back();
    } else if (!error_) {
      error_ = run.error;
      cancel();
    }
    left_.count_down();
  }

  // Throws what the first to fail threw.
  std::vector<Result> wait() {
    left_.wait();
    if (error_) rethrow_in_our_words(error_);
    return std::move(results_);
  }
  // Behind wait(): the prefix that the last request to end found or made.
  const PrefixPtr& prefix() const { return prefix_; }

 private:
  std::vector<Result> results_;
  std::exception_ptr error_;
  PrefixPtr prefix_;
  std::latch left_;
};

}  // namespace espalier
