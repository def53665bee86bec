// SPDX-License-Identifier: Apache-2.0
#include "cli/stats_text.h"

#include <array>
#include <cstdio>
#include <numeric>
#include <vector>

namespace espalier::cli {

namespace {

std::string fixed(double value, int digits) {
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), "%.*f", digits, value);
  return text.data();
}

// 1234567 in steps of `step` -> "1.23 M" + unit.
std::string scaled(double value, double step, const char* prefix_end, const char* unit) {
  constexpr std::array<const char*, 6> kPrefixes = {"", "k", "M", "G", "T", "P"};
  size_t prefix = 0;
  for (; value >= step && prefix + 1 < kPrefixes.size(); ++prefix) value /= step;
  if (prefix == 0) return fixed(value, 0) + " " + unit;
  const bool is_binary = prefix == 1 && *prefix_end;  // KiB, but kFLOP
  return fixed(value, 2) + " " + (is_binary ? "K" : kPrefixes[prefix]) + prefix_end + unit;
}

std::string bytes(int64_t value) {
  return scaled(static_cast<double>(value), 1024, "i", "B");
}
std::string flops(double value) {
  return scaled(value, 1000, "", "FLOP");
}

std::string part_of(double part, double whole) {
  return whole > 0 ? " (" + fixed(100 * part / whole, 1) + " %)" : "";
}

// [148, 148, 84, 84, 84] -> "0-1: 148  2-4: 84".
template <class T, class Show>
std::string runs_of_layers(const std::vector<T>& per_layer, Show show) {
  std::string text;
  for (size_t begin = 0, end = 0; begin < per_layer.size(); begin = end) {
    for (end = begin + 1; end < per_layer.size() && per_layer[end] == per_layer[begin];) ++end;
    text += (begin ? "  " : "") + std::to_string(begin);
    if (end - begin > 1) text += "-" + std::to_string(end - 1);
    text += ": " + show(per_layer[begin]);
  }
  return text;
}

std::string count(int64_t n) {
  return std::to_string(n);
}

std::string counts(const std::vector<int64_t>& ns) {
  std::string text;
  for (size_t i = 0; i < ns.size(); ++i) text += (i ? "+" : "") + count(ns[i]);
  return text;
}

std::string line(const std::string& name, const std::string& value) {
  return name + std::string(name.size() < 22 ? 22 - name.size() : 1, ' ') + value + "\n";
}

std::string kernels(const Stats& s) {
  std::string text;
  for (const auto& [op, kernel] : s.kernels) text += (text.empty() ? "" : ", ") + op + ": " + kernel;
  return text;
}

std::string prompt_line(const Stats& s) {
  const int64_t of_images = std::accumulate(s.image_tokens.begin(), s.image_tokens.end(), int64_t{0});
  std::string text = count(s.prompt_tokens) + " tokens";
  if (!s.image_tokens.empty()) {
    text += ", " + count(of_images) + " of them from " + count(std::ssize(s.image_tokens));
    text += s.image_tokens.size() == 1 ? " image" : " images: " + counts(s.image_tokens);
  }
  return line("prompt", text);
}

std::string time_lines(const Stats& s) {
  std::string decode = fixed(s.decode_ms, 1) + " ms";
  if (s.new_tokens > 1) decode += " (" + fixed(s.decode_ms / double(s.new_tokens - 1), 2) + " ms per token)";
  return line("time", "encode " + fixed(s.encode_ms, 1) + " ms, select " + fixed(s.select_ms, 2) + " ms, prefill " +
                          fixed(s.prefill_ms, 1) + " ms, decode " + decode) +
         line("time to first token", fixed(s.encode_ms + s.select_ms + s.prefill_ms, 1) + " ms");
}

std::string solved_line(const Stats& s) {
  const SolvedAmount& solved = *s.solved;
  std::string text = solved.policy == "none" ? "all stays" : solved.policy;
  if (solved.predicted_ms) {
    text += ": " + fixed(*solved.predicted_ms, 1) + " ms expected of " + fixed(*solved.allowed_ms, 1) +
            " ms allowed, " + fixed(s.encode_ms + s.select_ms + s.prefill_ms, 1) + " ms came";
    if (solved.waited_ms >= 0.05) text += " after " + fixed(solved.waited_ms, 1) + " ms of waiting";
  }
  if (!solved.fits) text += "; no amount is expected to be in time";
  return line("target", text + "; KV cache up to " + bytes(solved.kv_bytes) + " with the answer");
}

}  // namespace

std::string stats_text(const Stats& s) {
  std::string text = prompt_line(s);
  if (s.reused_tokens > 0) text += line("found in the cache", count(s.reused_tokens) + " of the prompt's tokens");
  text += line("answer", count(s.new_tokens) + " tokens");
  text += line("tokens by layer", runs_of_layers(s.tokens_per_layer, count));
  if (!s.image_tokens.empty()) text += line("image tokens by layer", runs_of_layers(s.image_tokens_per_layer, counts));
  text += line("cached by layer", runs_of_layers(s.kv_tokens_per_layer, count));
  text += time_lines(s);
  if (s.solved) text += solved_line(s);
  const auto kv = static_cast<double>(s.kv_bytes), kv_unpruned = static_cast<double>(s.kv_bytes_unpruned);
  text += line("KV cache",
               bytes(s.kv_bytes) + " of " + bytes(s.kv_bytes_unpruned) + " unpruned" + part_of(kv, kv_unpruned));
  text += line("prefill", flops(s.prefill_flops) + " of " + flops(s.prefill_flops_unpruned) + " unpruned" +
                              part_of(s.prefill_flops, s.prefill_flops_unpruned) + ", signals " + flops(s.probe_flops));
  text += line("peak memory", bytes(s.peak_memory_bytes));
  text += line("threads", count(s.threads));
  text += line("kernels", kernels(s));
  return text;
}

}  // namespace espalier::cli
