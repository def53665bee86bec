// SPDX-License-Identifier: Apache-2.0
// What the server counts, as Prometheus reads it. Policies are told apart by name; a pipeline is "pipeline", so that no
// client can make names.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "espalier/generation.h"
#include "espalier/scheduler.h"

namespace espalier::serve {

// Cumulative buckets, in seconds.
class Histogram {
 public:
  static constexpr std::array<double, 15> kBounds = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
                                                     0.5,   1,      2.5,   5,    10,    30,   60};
  void add(double seconds);
  void write(std::string& out, const std::string& name, const std::string& labels) const;

 private:
  std::array<int64_t, kBounds.size() + 1> counts_ = {};
  int64_t count_ = 0;
  double sum_ = 0;
};

// Of one request that ended.
struct Timing {
  double first_token = 0;              // seconds from the request's last byte
  std::vector<double> time_per_token;  // of each sample with more than one
  double total = 0;
};

// Thread-safe.
class Metrics {
 public:
  void add_http(const std::string& path, int status);
  void add_begun() { change_active(+1); }
  // `policy`: its name.
  void add_finished(const std::string& policy, const std::vector<const Result*>& samples, const Timing& timing);
  void add_ended() { change_active(-1); }  // with an answer or without
  void add_cancelled();

  struct Gauges {
    SchedulerLoad load;
    int64_t kv_bytes_limit = 0;
    int64_t connections = 0;
    bool is_ready = false;
  };
  std::string text(const Gauges& gauges) const;

 private:
  struct OfPolicy {
    int64_t requests = 0, image_tokens = 0, image_tokens_kept = 0;
    Histogram first_token, time_per_token, encode, select, prefill, decode, total;
  };
  void change_active(int64_t change);

  mutable std::mutex mutex_;
  std::map<std::pair<std::string, int>, int64_t> http_;
  std::map<std::string, OfPolicy> policies_;
  int64_t active_ = 0, cancelled_ = 0, prompt_tokens_ = 0, cached_tokens_ = 0, generated_tokens_ = 0;
};

// Image tokens that enter the last layer of a result's prefill: what pruning left.
int64_t image_tokens_left(const Stats& stats);
int64_t image_tokens_of(const Stats& stats);  // of the unpruned prompt

}  // namespace espalier::serve
