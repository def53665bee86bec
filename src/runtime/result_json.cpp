// SPDX-License-Identifier: Apache-2.0
#include "runtime/result_json.h"

#include <nlohmann/json.hpp>

#include "layout/points_json.h"

namespace espalier {

namespace {

using Json = nlohmann::ordered_json;

}  // namespace

std::string_view name_of(FinishReason reason) {
  switch (reason) {
    case FinishReason::kEos:
      return "eos";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kStopString:
      return "stop_string";
    case FinishReason::kStopped:
      return "stopped";
    case FinishReason::kCancelled:
      return "cancelled";
  }
  return "";
}

Json to_json(const Stats& stats) {
  Json kernels = Json::object();
  for (const auto& [op, kernel] : stats.kernels) kernels[op] = kernel;
  return {{"prompt_tokens", stats.prompt_tokens},
          {"reused_tokens", stats.reused_tokens},
          {"new_tokens", stats.new_tokens},
          {"image_tokens", stats.image_tokens},
          {"image_tokens_per_layer", stats.image_tokens_per_layer},
          {"tokens_per_layer", stats.tokens_per_layer},
          {"kv_tokens_per_layer", stats.kv_tokens_per_layer},
          {"time_ms",
           {{"encode", stats.encode_ms},
            {"select", stats.select_ms},
            {"prefill", stats.prefill_ms},
            {"decode", stats.decode_ms}}},
          {"flops",
           {{"prefill", stats.prefill_flops},
            {"prefill_unpruned", stats.prefill_flops_unpruned},
            {"probe", stats.probe_flops}}},
          {"kv_bytes", stats.kv_bytes},
          {"kv_bytes_unpruned", stats.kv_bytes_unpruned},
          {"peak_memory_bytes", stats.peak_memory_bytes},
          {"threads", stats.threads},
          {"kernels", kernels}};
}

Json to_json(const Result& result) {
  Json points = Json::array();
  for (const PointTrace& point : result.points) points.push_back(to_json(point));
  return {{"text", result.text},
          {"token_ids", result.token_ids},
          {"finish_reason", name_of(result.finish_reason)},
          {"prompt_token_ids", result.prompt_token_ids},
          {"prompt", result.prompt},
          {"policy", result.policy},
          {"points", points},
          {"kept", result.kept},
          {"stats", to_json(result.stats)}};
}

std::string to_line(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace espalier
