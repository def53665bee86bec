// SPDX-License-Identifier: Apache-2.0
#include "runtime/machine_rates.h"

#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/sum.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>

#include "espalier/ops.h"
#include "runtime/device_stopwatch.h"
#include "runtime/engine_impl.h"

namespace espalier {

namespace {

// Seconds of the fastest of a few runs: a ceiling is what the machine can do, not what it did on average.
template <typename Action>
double fastest_seconds(c10::Device device, const Action& action) {
  constexpr int kRuns = 4;
  action();
  double fastest = 0;
  for (int i = 0; i < kRuns; ++i) {
    DeviceStopwatch watch(device);
    action();
    watch.stop();
    const double seconds = 1e-3 * watch.milliseconds();
    fastest = i == 0 ? seconds : std::min(fastest, seconds);
  }
  return fastest;
}

int64_t weight_bytes(const DecoderWeights& weights) {
  int64_t bytes = static_cast<int64_t>(weights.head.nbytes());
  for (const DecoderLayerWeights& w : weights.layers)
    for (const at::Tensor* t : {&w.q, &w.k, &w.v, &w.o, &w.gate, &w.up, &w.down})
      bytes += static_cast<int64_t>(t->nbytes());
  return bytes;
}

}  // namespace

MachineRates measure_rates(const Engine& engine) {
  const LoadedModel& model = engine.impl().model;
  MachineRates rates;
  engine.impl().compute->run([&] {
    const c10::InferenceMode no_gradients;
    const auto options = at::TensorOptions().device(model.device);
    const int64_t size = model.device.is_cpu() ? 2048 : 8192;
    const at::Tensor a = at::randn({size, size}, options).to(model.dtype),
                     b = at::randn({size, size}, options).to(model.dtype);
    const auto n = static_cast<double>(size);
    rates.matrix_flops = 2 * n * n * n / fastest_seconds(model.device, [&] { ops::linear(a, b); });
    const at::Tensor memory = at::ones({int64_t{64} << 20}, options);
    rates.read_bytes = static_cast<double>(memory.nbytes()) / fastest_seconds(model.device, [&] { at::sum(memory); });
  });
  rates.bytes_a_token = weight_bytes(model.weights.decoder);
  return rates;
}

}  // namespace espalier
