// SPDX-License-Identifier: Apache-2.0
#include "bench/kernels/op_timing.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/sum.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/accumulate.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "espalier/memory.h"
#include "kernels/support/chosen_kernels.h"

namespace espalier::bench {

namespace {

constexpr size_t kFewestRuns = 5;

[[noreturn]] void fail(const std::string& message) {
  std::fprintf(stderr, "%s\n", message.c_str());
  std::exit(2);
}

Spread spread_of(std::vector<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  return {seconds[seconds.size() / 2], seconds.front(), seconds.back(), seconds.size()};
}

c10::Stream current_stream(at::Device device) {
  return c10::impl::VirtualGuardImpl(device.type()).getStream(device);
}

std::string json_number(const char* name, double value) {
  char text[96];
  std::snprintf(text, sizeof text, ", \"%s\": %.6g", name, value);
  return text;
}

}  // namespace

OpBench::OpBench(int argc, char** argv) : device_(at::kCPU) {
  keep_freed_memory();  // results of all sides lie in old pages, as in a program that runs for a while
  for (int i = 1; i < argc; i += 2) {
    const std::string option = argv[i];
    if (i + 1 >= argc || option.rfind("--", 0) != 0)
      fail("options: --device cpu|cuda, --seconds S (a row), --threads N, --json FILE (appended to), --match OP");
    const std::string value = argv[i + 1];
    if (option == "--device") {
      if (value != "cpu" && value != "cuda") fail("--device: cpu or cuda expected, got " + value);
      if (value == "cuda" && !at::globalContext().hasCUDA()) fail("--device cuda: this machine or this build has none");
      device_ = value == "cuda" ? at::Device(at::kCUDA, 0) : at::Device(at::kCPU);
    } else if (option == "--seconds") {
      seconds_ = std::atof(value.c_str());
    } else if (option == "--threads") {
      at::set_num_threads(std::atoi(value.c_str()));
    } else if (option == "--json") {
      json_ = value;
    } else if (option == "--match") {
      match_ = value;
    } else {
      fail("unknown option " + option);
    }
  }
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // rows show as they come
  if (is_cuda()) flushed_ = at::empty({int64_t{256} << 20}, at::TensorOptions().dtype(at::kByte).device(device_));
  measure_bandwidth();
  std::printf("%s, %d threads; copying %.1f GB/s (read + written), reading %.1f GB/s\n", is_cuda() ? "CUDA" : "CPU",
              at::get_num_threads(), copy_rate_ * 1e-9, read_rate_ * 1e-9);
}

at::Tensor OpBench::randn(at::IntArrayRef sizes, at::ScalarType dtype) const {
  constexpr int64_t kDistinct = 1 << 23;
  const int64_t numel = c10::multiply_integers(sizes);
  const auto options = at::TensorOptions().device(device_);
  if (is_cuda() || numel <= kDistinct) return at::randn(sizes, options).to(dtype);
  // On the CPU, making many would take longer than timing what is done with them.
  const at::Tensor some = at::randn({kDistinct}, options).to(dtype);
  return some.repeat({(numel + kDistinct - 1) / kDistinct}).narrow(0, 0, numel).view(sizes);
}

at::Tensor OpBench::range(int64_t begin, int64_t end, int64_t step) const {
  return at::arange(begin, end, step, at::TensorOptions().dtype(at::kLong).device(device_));
}

bool OpBench::wants(const std::string& op) const {
  return match_.empty() || op.find(match_) != std::string::npos;
}

// One run of each action. On CUDA its stream is marked before and behind; writing flushed_ takes longer than the host
// needs to enqueue an op, so that what is measured is the device and not the launching.
std::vector<double> OpBench::time_once(const std::vector<Action>& actions) const {
  std::vector<double> seconds;
  if (!is_cuda()) {
    for (const Action& action : actions) {
      const auto start = std::chrono::steady_clock::now();
      action();
      seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    return seconds;
  }
  for (const Action& action : actions) {
    c10::Event start(device_.type(), c10::EventFlag::BACKEND_DEFAULT),
        stop(device_.type(), c10::EventFlag::BACKEND_DEFAULT);
    flushed_.fill_(1);
    start.record(current_stream(device_));
    action();
    stop.record(current_stream(device_));
    stop.synchronize();
    seconds.push_back(start.elapsedTime(stop) * 1e-3);
  }
  return seconds;
}

std::vector<Spread> OpBench::time_in_turn(const std::vector<Action>& actions) const {
  time_once(actions);  // warms up
  std::vector<std::vector<double>> seconds(actions.size());
  const auto start = std::chrono::steady_clock::now();
  const auto spent = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
  while (seconds[0].size() < kFewestRuns || spent() < seconds_) {
    const std::vector<double> round = time_once(actions);
    for (size_t i = 0; i < round.size(); ++i) seconds[i].push_back(round[i]);
    // A loop of many small operators can take seconds a run: three must do.
    if (seconds[0].size() >= 3 && spent() > 10 * seconds_) break;
  }
  std::vector<Spread> spreads;
  for (std::vector<double>& of_one : seconds) spreads.push_back(spread_of(std::move(of_one)));
  return spreads;
}

double OpBench::rate(double amount, const Action& action) const {
  return amount / time_in_turn({action})[0].median;
}

void OpBench::measure_bandwidth() {
  const int64_t bytes = is_cuda() ? int64_t{2} << 30 : int64_t{256} << 20;
  const at::Tensor from = randn({bytes / 4}, at::kFloat), to = at::empty_like(from);
  const Action copy_host = [&] {
    at::parallel_for(0, bytes, 1 << 20, [&](int64_t begin, int64_t end) {
      std::memcpy(static_cast<char*>(to.mutable_data_ptr()) + begin,
                  static_cast<const char*>(from.const_data_ptr()) + begin, static_cast<size_t>(end - begin));
    });
  };
  copy_rate_ = rate(2.0 * static_cast<double>(bytes), is_cuda() ? Action([&] { to.copy_(from); }) : copy_host);
  read_rate_ = rate(static_cast<double>(bytes), [&] { at::sum(from); });
}

double OpBench::matrix_rate(at::ScalarType dtype) {
  for (const auto& [known, rate_of_dtype] : matrix_rates_)
    if (known == dtype) return rate_of_dtype;
  const int64_t size = is_cuda() ? 8192 : 2048;
  const at::Tensor a = randn({size, size}, dtype), b = randn({size, size}, dtype);
  const double flops = 2.0 * static_cast<double>(size) * static_cast<double>(size) * static_cast<double>(size);
  matrix_rates_.emplace_back(dtype, rate(flops, [&] { at::linear(a, b); }));
  std::printf("%s matrix rate %.0f GFLOP/s\n", c10::toString(dtype), matrix_rates_.back().second * 1e-9);
  return matrix_rates_.back().second;
}

void OpBench::report(const std::string& op, const Row& row, const Action& ours, const std::vector<Beside>& others) {
  if (!(row.error <= row.allowed)) {
    std::printf("%s %s %s: wrong by %g, allowed %g\n", op.c_str(), c10::toString(row.dtype), row.shape.c_str(),
                row.error, row.allowed);
    is_wrong_ = true;
    return;
  }
  std::string kernel;
  {
    const kernels::ChosenKernels chosen;
    ours();
    for (const auto& [name, choice] : chosen.list())
      if (name == op) kernel = choice;
  }
  std::vector<Action> actions = {ours};
  for (const Beside& other : others) actions.push_back(other.run);
  const double matrix = row.work.flops > 0 ? matrix_rate(row.dtype) : 0;
  const std::vector<Spread> spreads = time_in_turn(actions);
  const Spread& own = spreads[0];
  const bool reads = has_reading_ceiling(row.work);
  std::printf("%-24s %-8s %-44s %10.1f us (%.1f .. %.1f)", op.c_str(), c10::toString(row.dtype), row.shape.c_str(),
              own.median * 1e6, own.fastest * 1e6, own.slowest * 1e6);
  if (row.work.bytes > 0)
    std::printf("  %7.1f GB/s, %3.0f %% of %s", row.work.bytes / own.median * 1e-9,
                100 * row.work.bytes / own.median / (reads ? read_rate_ : copy_rate_), reads ? "reading" : "copying");
  if (row.work.flops > 0)
    std::printf("  %7.0f GFLOP/s, %3.0f %% of matrix rate", row.work.flops / own.median * 1e-9,
                100 * row.work.flops / own.median / matrix);
  for (size_t i = 0; i < others.size(); ++i)
    std::printf("  %s %.1f us (%.1fx)", others[i].name, spreads[i + 1].median * 1e6,
                spreads[i + 1].median / own.median);
  std::printf("  [%s]\n", kernel.c_str());
  if (!json_.empty()) append_json(op, row, kernel, own, others, spreads, matrix);
}

void OpBench::append_json(const std::string& op, const Row& row, const std::string& kernel, const Spread& ours,
                          const std::vector<Beside>& others, const std::vector<Spread>& spreads, double matrix) const {
  const bool reads = has_reading_ceiling(row.work);
  std::string line = "{\"op\": \"" + op + "\", \"shape\": \"" + row.shape + "\", \"dtype\": \"" +
                     c10::toString(row.dtype) + "\", \"device\": \"" + (is_cuda() ? "cuda" : "cpu") +
                     "\", \"kernel\": \"" + kernel + "\", \"threads\": " + std::to_string(at::get_num_threads()) +
                     ", \"runs\": " + std::to_string(ours.runs);
  line += json_number("median_us", ours.median * 1e6) + json_number("fastest_us", ours.fastest * 1e6) +
          json_number("slowest_us", ours.slowest * 1e6) + json_number("error", row.error);
  if (row.work.bytes > 0) {
    line += json_number("bytes", row.work.bytes) +
            json_number("ceiling_gb_per_s", (reads ? read_rate_ : copy_rate_) * 1e-9);
    line += std::string(", \"ceiling\": \"") + (reads ? "reading" : "copying") + "\"";
  }
  if (row.work.flops > 0)
    line += json_number("flops", row.work.flops) + json_number("matrix_gflop_per_s", matrix * 1e-9);
  line += ", \"beside_us\": {";
  for (size_t i = 0; i < others.size(); ++i) {
    const std::string member = json_number(others[i].name, spreads[i + 1].median * 1e6);
    line += i == 0 ? member.substr(2) : member;
  }
  line += "}}\n";
  std::FILE* file = std::fopen(json_.c_str(), "a");
  if (file == nullptr) fail("--json " + json_ + ": cannot be written");
  std::fputs(line.c_str(), file);
  if (std::fclose(file) != 0) fail("--json " + json_ + ": cannot be written");
}

std::string AttentionShape::name() const {
  return std::to_string(batch) + " x " + std::to_string(tokens) + " tokens, 32/" + std::to_string(kv_heads) +
         " heads of 128";
}

std::vector<AttentionShape> attention_shapes() {
  std::vector<AttentionShape> shapes;
  for (const int64_t batch : {1, 8})
    for (const int64_t tokens : {576, 2880, 11520})
      for (const int64_t kv_heads : {32, 8, 4}) shapes.push_back({tokens, kv_heads, batch});
  return shapes;
}

}  // namespace espalier::bench
