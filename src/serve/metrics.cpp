// SPDX-License-Identifier: Apache-2.0
#include "serve/metrics.h"

#include <algorithm>
#include <numeric>
#include <sstream>

namespace espalier::serve {

namespace {

std::string number(double value) {
  std::ostringstream text;
  text.precision(10);
  text << value;
  return text.str();
}

void describe(std::string& out, const std::string& name, const char* type, const char* help) {
  out += "# HELP " + name + " " + help + "\n# TYPE " + name + " " + type + "\n";
}

void one(std::string& out, const std::string& name, const char* type, const char* help, int64_t value) {
  describe(out, name, type, help);
  out += name + " " + std::to_string(value) + "\n";
}

}  // namespace

int64_t image_tokens_of(const Stats& stats) {
  return std::accumulate(stats.image_tokens.begin(), stats.image_tokens.end(), int64_t{0});
}

int64_t image_tokens_left(const Stats& stats) {
  if (stats.image_tokens_per_layer.empty()) return image_tokens_of(stats);
  const std::vector<int64_t>& last = stats.image_tokens_per_layer.back();
  return std::accumulate(last.begin(), last.end(), int64_t{0});
}

void Histogram::add(double seconds) {
  const auto bound = std::ranges::lower_bound(kBounds, seconds);
  ++counts_[static_cast<size_t>(bound - kBounds.begin())];
  ++count_;
  sum_ += seconds;
}

void Histogram::write(std::string& out, const std::string& name, const std::string& labels) const {
  int64_t cumulated = 0;
  for (size_t i = 0; i < kBounds.size(); ++i) {
    cumulated += counts_[i];
    out += name + "_bucket{" + labels + ",le=\"" + number(kBounds[i]) + "\"} " + std::to_string(cumulated) + "\n";
  }
  out += name + "_bucket{" + labels + ",le=\"+Inf\"} " + std::to_string(count_) + "\n";
  out += name + "_sum{" + labels + "} " + number(sum_) + "\n";
  out += name + "_count{" + labels + "} " + std::to_string(count_) + "\n";
}

void Metrics::add_http(const std::string& path, int status) {
  const std::scoped_lock lock(mutex_);
  ++http_[{path, status}];
}

void Metrics::change_active(int64_t change) {
  const std::scoped_lock lock(mutex_);
  active_ += change;
}

void Metrics::add_cancelled() {
  const std::scoped_lock lock(mutex_);
  ++cancelled_;
}

void Metrics::add_finished(const std::string& policy, const std::vector<const Result*>& samples, const Timing& timing) {
  const std::scoped_lock lock(mutex_);
  OfPolicy& of = policies_[policy];
  ++of.requests;
  of.first_token.add(timing.first_token);
  of.total.add(timing.total);
  for (const double seconds : timing.time_per_token) of.time_per_token.add(seconds);
  for (const Result* result : samples) {
    const Stats& stats = result->stats;
    of.image_tokens += image_tokens_of(stats);
    of.image_tokens_kept += image_tokens_left(stats);
    of.encode.add(stats.encode_ms / 1000);
    of.select.add(stats.select_ms / 1000);
    of.prefill.add(stats.prefill_ms / 1000);
    of.decode.add(stats.decode_ms / 1000);
    prompt_tokens_ += stats.prompt_tokens;
    cached_tokens_ += stats.reused_tokens;
    generated_tokens_ += stats.new_tokens;
  }
}

std::string Metrics::text(const Gauges& gauges) const {
  const std::scoped_lock lock(mutex_);
  const SchedulerLoad& load = gauges.load;
  std::string out;
  one(out, "espalier_ready", "gauge", "1 when the model is loaded and requests are taken", gauges.is_ready);
  one(out, "espalier_connections", "gauge", "Open connections", gauges.connections);
  one(out, "espalier_requests_active", "gauge", "Requests for an answer that have not ended", active_);
  one(out, "espalier_queue", "gauge", "Sequences that wait for their turn", load.waiting);
  one(out, "espalier_running", "gauge", "Sequences between encode and the end of their answers", load.running);
  one(out, "espalier_kv_bytes_in_use", "gauge", "Bytes of keys and values, the prefix cache's among them",
      load.kv_bytes_in_use);
  one(out, "espalier_kv_bytes_promised", "gauge", "Bytes that running sequences may come to", load.kv_bytes_promised);
  if (gauges.kv_bytes_limit > 0)
    one(out, "espalier_kv_bytes_free", "gauge", "Bytes that a next sequence may be promised",
        gauges.kv_bytes_limit - load.kv_bytes_promised);
  one(out, "espalier_prefix_cache_hits_total", "counter", "Prompts whose beginning was known", load.prefix_hits);
  one(out, "espalier_prefix_cache_misses_total", "counter", "Prompts whose beginning was not", load.prefix_misses);
  one(out, "espalier_prefix_cache_bytes", "gauge", "Bytes of beginnings", load.prefix_bytes);
  one(out, "espalier_image_cache_hits_total", "counter", "Pictures that were looked at before", load.image_hits);
  one(out, "espalier_image_cache_misses_total", "counter", "Pictures that were not", load.image_misses);
  one(out, "espalier_image_cache_bytes", "gauge", "Bytes of features of pictures", load.image_bytes);
  one(out, "espalier_prompt_tokens_total", "counter", "Tokens of prompts, before pruning", prompt_tokens_);
  one(out, "espalier_cached_tokens_total", "counter", "Of these, found in the prefix cache", cached_tokens_);
  one(out, "espalier_generated_tokens_total", "counter", "Tokens of answers", generated_tokens_);
  one(out, "espalier_requests_cancelled_total", "counter", "Requests whose client left, or that took too long",
      cancelled_);
  describe(out, "espalier_http_requests_total", "counter", "Answers by path and status");
  for (const auto& [key, count] : http_)
    out += "espalier_http_requests_total{path=\"" + key.first + "\",status=\"" + std::to_string(key.second) + "\"} " +
           std::to_string(count) + "\n";

  struct Counter {
    const char* name;
    const char* help;
    int64_t (*of)(const OfPolicy&);
  };
  constexpr Counter kCounters[] = {
      {"espalier_requests_total", "Requests answered", [](const OfPolicy& p) { return p.requests; }},
      {"espalier_image_tokens_total", "Image tokens of prompts", [](const OfPolicy& p) { return p.image_tokens; }},
      {"espalier_image_tokens_kept_total", "Of these, in the last layer",
       [](const OfPolicy& p) { return p.image_tokens_kept; }},
      {"espalier_image_tokens_pruned_total", "Of these, gone before it",
       [](const OfPolicy& p) { return p.image_tokens - p.image_tokens_kept; }}};
  for (const Counter& counter : kCounters) {
    describe(out, counter.name, "counter", counter.help);
    for (const auto& [policy, of] : policies_)
      out += std::string(counter.name) + "{policy=\"" + policy + "\"} " + std::to_string(counter.of(of)) + "\n";
  }
  struct Times {
    const char* name;
    const char* help;
    Histogram OfPolicy::*of;
  };
  constexpr Times kTimes[] = {
      {"espalier_time_to_first_token_seconds", "From a request's last byte", &OfPolicy::first_token},
      {"espalier_time_per_output_token_seconds", "Of the tokens after the first", &OfPolicy::time_per_token},
      {"espalier_encode_seconds", "Pictures, tokenizer, vision tower, projector", &OfPolicy::encode},
      {"espalier_select_seconds", "Deciding and applying what is dropped", &OfPolicy::select},
      {"espalier_prefill_seconds", "Decoder up to the first token", &OfPolicy::prefill},
      {"espalier_decode_seconds", "All later tokens", &OfPolicy::decode},
      {"espalier_request_seconds", "From a request's last byte to the end of its answer", &OfPolicy::total}};
  for (const Times& times : kTimes) {
    describe(out, times.name, "histogram", times.help);
    for (const auto& [policy, of] : policies_) (of.*times.of).write(out, times.name, "policy=\"" + policy + "\"");
  }
  return out;
}

}  // namespace espalier::serve
