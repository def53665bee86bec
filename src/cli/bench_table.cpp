// SPDX-License-Identifier: Apache-2.0
#include "cli/bench_table.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>

#include "cli/formatted.h"
#include "runtime/result_json.h"

namespace espalier::cli {

namespace {

using Json = nlohmann::ordered_json;

std::string counted(int64_t n, const char* one, const char* many) {
  return std::to_string(n) + " " + (n == 1 ? one : many);
}

// Every op of any of the runs, with all kernels that served it.
std::string kernels_text(const BenchResult& result) {
  std::map<std::string, std::string> kernels;
  for (const BenchSeries& s : result.series)
    for (const auto& [op, kernel] : s.stats.kernels) {
      std::string& known = kernels[op];
      if (known.find(kernel) == std::string::npos) known += (known.empty() ? "" : " + ") + kernel;
    }
  std::string text;
  for (const auto& [op, kernel] : kernels) text += (text.empty() ? "" : ", ") + op + " " + kernel;
  return text;
}

double tokens_per_second(const BenchSetting& setting, double per_token_ms) {
  return per_token_ms > 0 ? 1e3 * static_cast<double>(setting.requests) / per_token_ms : 0;
}

std::string row_text(const BenchSetting& setting, const BenchSeries& first, const BenchSeries& s,
                     const MachineRates& rates) {
  const auto median = [](const BenchSeries& of, double BenchSample::*field) { return of.spread(field).median; };
  const Spread first_token = s.spread(&BenchSample::first_token);
  const double prefill = median(s, &BenchSample::prefill), per_token = median(s, &BenchSample::per_token);
  const double speed_up = median(first, &BenchSample::select_prefill) / median(s, &BenchSample::select_prefill);
  const double expected = first.stats.prefill_flops / s.stats.prefill_flops;
  const double matrix = s.stats.prefill_flops / (1e-3 * prefill) / rates.matrix_flops;
  const double memory =
      static_cast<double>(rates.bytes_a_token + s.stats.kv_bytes) / (1e-3 * per_token) / rates.read_bytes;
  return formatted(
      "%-36s %7lld %8.1f %8.2f %9.1f %5.0f%% %9.1f ±%3.0f%% %19s %8.2f %5.0f%% %9.1f %8.2f %8.2f %6.0f%%%s\n",
      s.policy.c_str(), static_cast<long long>(s.stats.tokens_per_layer.back()), median(s, &BenchSample::encode),
      median(s, &BenchSample::select), prefill, 100 * matrix, first_token.median, 100 * first_token.noise(),
      formatted("%.1f .. %.1f", first_token.least, first_token.most).c_str(), per_token,
      per_token > 0 ? 100 * memory : 0.0, tokens_per_second(setting, per_token), speed_up, expected,
      100 * speed_up / expected, s.is_noisy() ? "  noisy" : "");
}

Json to_json(const Spread& s) {
  return {{"median", s.median}, {"low", s.low}, {"high", s.high}, {"min", s.least}, {"max", s.most}};
}

}  // namespace

std::string bench_legend() {
  return "Times are medians in milliseconds. encode: pictures and text to decoder input; select: deciding what stays, "
         "and\n"
         "taking the rest out; prefill: the decoder up to the first token. first token: the three together, with half "
         "the\n"
         "95 % interval of the median, and the fastest and slowest run. ms/token: each later token; tokens/s: those of "
         "all\n"
         "requests at once. tokens: entering the last layer, text included.\n"
         "matrix: prefill's share of the rate of a large matrix product, measured here. memory: a later token's share "
         "of\n"
         "the rate at which memory is read, counted over weights and cache.\n"
         "speed-up: select + prefill of the first policy over that of this one. expected: the same of their FLOPs in "
         "the\n"
         "decoder. reached: the former over the latter.\n"
         "noisy: of first token or ms/token the slow tenth of the runs took more than 1.3 times as long as the fast\n"
         "tenth; such numbers mean little.\n";
}

std::string bench_heading(const BenchResult& first, const BenchMachine& machine) {
  return counted(first.series.front().stats.threads, "thread", "threads") +
         formatted(", load average %.2f on ", machine.load_average) +
         counted(machine.processors, "processor", "processors") +
         formatted(" before it began; matrix rate %.0f GFLOP/s, reading %.1f GB/s\n", machine.rates.matrix_flops * 1e-9,
                   machine.rates.read_bytes * 1e-9) +
         "kernels: " + kernels_text(first) + "\n";
}

std::string bench_table(const BenchSetting& setting, const BenchResult& result, const BenchMachine& machine) {
  std::string text = "\n" + setting.name;
  if (setting.side > 0) text += formatted(", pictures of %lld pixels a side", static_cast<long long>(setting.side));
  if (setting.requests > 1) text += ", " + counted(setting.requests, "request", "requests") + " at once";
  text += ", " + counted(result.series.front().stats.prompt_tokens, "prompt token", "prompt tokens") + ", " +
          counted(setting.new_tokens, "new token", "new tokens") + "; " +
          counted(result.rounds, "run of each policy", "runs of each policy, in turn") +
          formatted("; %.2f processors busy\n", result.cpu_per_wall);
  text += formatted("%-36s %7s %8s %8s %9s %6s %15s %19s %8s %6s %9s %8s %8s %7s\n", "policy", "tokens", "encode",
                    "select", "prefill", "matrix", "first token", "fastest .. slowest", "ms/token", "memory",
                    "tokens/s", "speed-up", "expected", "reached");
  for (const BenchSeries& s : result.series) text += row_text(setting, result.series.front(), s, machine.rates);
  if (std::ranges::any_of(result.series, &BenchSeries::is_noisy))
    text += "noisy runs: something else used the machine; close it, or let --max-repeat be larger\n";
  return text;
}

std::string bench_json(const BenchSetting& setting, const BenchResult& result, const BenchMachine& machine,
                       const nlohmann::ordered_json& head) {
  std::string lines;
  for (const BenchSeries& s : result.series) {
    const double per_token = s.spread(&BenchSample::per_token).median;
    const double select_prefill = s.spread(&BenchSample::select_prefill).median;
    const double whole = s.spread(&BenchSample::whole).median;
    const auto requests = static_cast<double>(setting.requests);
    Json line = head;
    line.update({{"policy", s.policy},
                 {"prompt", setting.name},
                 {"shots", setting.shots < 0 ? Json(nullptr) : Json(setting.shots)},
                 {"picture_side", setting.side < 0 ? Json(nullptr) : Json(setting.side)},
                 {"requests", setting.requests},
                 {"new_tokens", setting.new_tokens},
                 {"runs", s.samples.size()},
                 {"noise", s.noise()},
                 {"noisy", s.is_noisy()},
                 {"complete", result.is_complete},
                 {"time_ms",
                  {{"encode", to_json(s.spread(&BenchSample::encode))},
                   {"select", to_json(s.spread(&BenchSample::select))},
                   {"prefill", to_json(s.spread(&BenchSample::prefill))},
                   {"select_prefill", to_json(s.spread(&BenchSample::select_prefill))},
                   {"first_token", to_json(s.spread(&BenchSample::first_token))},
                   {"decode_per_token", to_json(s.spread(&BenchSample::per_token))},
                   {"whole", to_json(s.spread(&BenchSample::whole))}}},
                 {"tokens_per_s",
                  {{"prefill", 1e3 * requests * static_cast<double>(s.stats.prompt_tokens) / select_prefill},
                   {"decode", tokens_per_second(setting, per_token)},
                   {"whole", 1e3 * requests * static_cast<double>(setting.new_tokens) / whole}}},
                 {"stats", espalier::to_json(s.stats)},
                 {"machine",
                  {{"load_average", machine.load_average},
                   {"processors", machine.processors},
                   {"processors_busy", result.cpu_per_wall},
                   {"matrix_flops_per_s", machine.rates.matrix_flops},
                   {"read_bytes_per_s", machine.rates.read_bytes},
                   {"weight_bytes_per_token", machine.rates.bytes_a_token}}}});
    lines += to_line(line) + "\n";
  }
  return lines;
}

}  // namespace espalier::cli
