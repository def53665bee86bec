// SPDX-License-Identifier: Apache-2.0
// What the op benchmarks share: options, ceilings measured on the spot, one row per op and shape. A row is checked
// against the same formula in torch operators, then both are timed in turn, so that they see the machine in the same
// state. On CUDA the device's own clock counts, with the caches flushed before each run.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace espalier::bench {

using Action = std::function<void()>;

// Seconds of one run: median, fastest and slowest of `runs`.
struct Spread {
  double median = 0, fastest = 0, slowest = 0;
  size_t runs = 0;
};

// The least that the op must do: what its share of a ceiling is counted from.
struct Work {
  double bytes = 0;
  double flops = 0;
  bool only_reads = false;  // then the ceiling on the CPU is the reading rate, not that of copies
};

// The same result by other means, timed beside the op.
struct Beside {
  const char* name;
  Action run;
};

struct Row {
  std::string shape;
  at::ScalarType dtype;
  Work work;
  double error;    // of the op against the torch formula, as the bench measures it
  double allowed;  // above: the row says so instead of times, and status() is 1
};

class OpBench {
 public:
  // Reads --device, --seconds, --threads, --json and --match; prints the header. Wrong options end the program.
  OpBench(int argc, char** argv);

  at::Device device() const { return device_; }
  bool is_cuda() const { return device_.is_cuda(); }

  // Standard normal (large ones on the CPU repeat themselves), and indices, on the device.
  at::Tensor randn(at::IntArrayRef sizes, at::ScalarType dtype) const;
  at::Tensor range(int64_t begin, int64_t end, int64_t step = 1) const;

  // Whether --match leaves this op in (all without the option). Ask before making large inputs.
  bool wants(const std::string& op) const;

  // Runs `ours` once more to learn which kernel it takes, times everything and prints.
  void report(const std::string& op, const Row& row, const Action& ours, const std::vector<Beside>& others);

  // What main returns.
  int status() const { return is_wrong_ ? 1 : 0; }

 private:
  std::vector<Spread> time_in_turn(const std::vector<Action>& actions) const;
  std::vector<double> time_once(const std::vector<Action>& actions) const;
  bool has_reading_ceiling(const Work& work) const { return work.only_reads && !is_cuda(); }
  double rate(double amount, const Action& action) const;
  void measure_bandwidth();
  double matrix_rate(at::ScalarType dtype);
  void append_json(const std::string& op, const Row& row, const std::string& kernel, const Spread& ours,
                   const std::vector<Beside>& others, const std::vector<Spread>& spreads, double matrix) const;

  at::Device device_;
  double seconds_ = 0.5;  // for each row
  std::string json_, match_;
  double copy_rate_ = 0, read_rate_ = 0;
  std::vector<std::pair<at::ScalarType, double>> matrix_rates_;
  at::Tensor flushed_;  // larger than the device's caches
  bool is_wrong_ = false;
};

// The shapes of the project's targets: image tokens, KV heads under 32 query heads of 128, sequences.
struct AttentionShape {
  int64_t tokens, kv_heads, batch;
  std::string name() const;
};
std::vector<AttentionShape> attention_shapes();
inline constexpr int64_t kQueryHeads = 32, kHeadDim = 128;

}  // namespace espalier::bench
