// SPDX-License-Identifier: Apache-2.0
#include "runtime/result_json.h"

#include <array>
#include <ctime>
#include <nlohmann/json.hpp>

#include "base/json_schema.h"
#include "espalier/json.h"
#include "espalier/version.h"
#include "layout/points_json.h"
#include "layout/policy_defaults.h"
#include "runtime/engine_impl.h"

namespace espalier {

namespace {

using Json = nlohmann::ordered_json;

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm fields{};
  gmtime_r(&now, &fields);
  std::array<char, 32> text{};
  std::strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%SZ", &fields);
  return text.data();
}

// All of a point: what a replay result has of it, and what is there in a trace only.
Json whole(const PointTrace& point) {
  Json json = to_json(point);
  const auto put = [&json](const char* name, const auto& list) {
    if (!list.empty()) json[name] = list;
  };
  put("candidates", point.candidates);
  put("dropped", point.dropped);
  put("tokens_per_image", point.tokens_per_image);
  put("source", point.source);
  put("position_id", point.position_id);
  return json;
}

const char* name_of(TokenTrace::Kind kind) {
  switch (kind) {
    case TokenTrace::Kind::kText:
      return "text";
    case TokenTrace::Kind::kPatch:
      return "patch";
    case TokenTrace::Kind::kRowBreak:
      return "row_break";
  }
  return "";
}

Json to_json(const TokenTrace& token) {
  Json json = {{"kind", name_of(token.kind)}, {"example", token.example}};
  if (token.image >= 0) json["image"] = token.image;
  if (token.kind != TokenTrace::Kind::kPatch) return json;
  json["crop"] = token.crop;
  json["row"] = token.row;
  json["column"] = token.column;
  if (token.box) json["box"] = {token.box->x0, token.box->y0, token.box->x1, token.box->y1};
  return json;
}

Json to_json(const PromptTrace& prompt) {
  Json pictures = Json::array(), tokens = Json::array();
  for (const PromptTrace::Picture& picture : prompt.pictures) {
    Json& json = pictures.emplace_back(Json{{"grid", {picture.rows, picture.columns}}});
    if (picture.tile_rows > 0) json["tiling"] = {picture.tile_rows, picture.tile_columns};
  }
  for (const TokenTrace& token : prompt.tokens) tokens.push_back(to_json(token));
  return {{"query_example", prompt.query_example},
          {"images", pictures},
          {"tokens", tokens},
          {"position_id", prompt.position_id}};
}

Json to_json(const SchedulerLoad& load) {
  return {{"waiting", load.waiting},
          {"running", load.running},
          {"kv_bytes_promised", load.kv_bytes_promised},
          {"kv_bytes_in_use", load.kv_bytes_in_use},
          {"prefix_hits", load.prefix_hits},
          {"prefix_misses", load.prefix_misses},
          {"reused_tokens", load.reused_tokens},
          {"prefix_bytes", load.prefix_bytes},
          {"image_hits", load.image_hits},
          {"image_misses", load.image_misses},
          {"image_bytes", load.image_bytes}};
}

Json to_json(const std::vector<TokenLogprobs>& logprobs) {
  Json list = Json::array();
  for (const TokenLogprobs& token : logprobs) {
    Json top = Json::array();
    for (const TokenLogprobs::Alternative& other : token.top)
      top.push_back({{"id", other.id}, {"logprob", other.logprob}});
    list.push_back({{"id", token.id}, {"logprob", token.logprob}, {"top", top}});
  }
  return list;
}

}  // namespace

Json json_head() {
  return {{"schema", kJsonSchema}, {"espalier", version()}, {"date", utc_now()}};
}

Json json_head(const Engine& engine) {
  const LoadedModel& model = engine.impl().model;
  const std::filesystem::path folder = std::filesystem::absolute(model.folder).lexically_normal();
  Json head = json_head();
  head["model"] = (folder.has_filename() ? folder : folder.parent_path()).filename().string();
  head["dtype"] = dtype_option(model.dtype);
  head["device"] = model.device.is_cuda() ? "cuda" : "cpu";
  return head;
}

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

Json to_json(const SolvedAmount& solved) {
  Json json = {{"policy", solved.policy}, {"fits", solved.fits}};
  if (solved.predicted_ms) json["predicted_ms"] = *solved.predicted_ms;
  if (solved.allowed_ms) json["allowed_ms"] = *solved.allowed_ms;
  json["waited_ms"] = solved.waited_ms;
  json["kv_bytes"] = solved.kv_bytes;
  return json;
}

Json to_json(const ModelFacts& facts) {
  return {{"name", facts.name},
          {"family", facts.family},
          {"dtype", facts.dtype},
          {"num_layers", facts.num_layers},
          {"hidden_size", facts.hidden_size},
          {"num_heads", facts.num_heads},
          {"num_kv_heads", facts.num_kv_heads},
          {"head_dim", facts.head_dim},
          {"intermediate_size", facts.intermediate_size},
          {"sliding_window", facts.sliding_window},
          {"has_mrope", facts.has_mrope},
          {"vision_layers", facts.vision_layers},
          {"vision_feature_layer", facts.vision_feature_layer},
          {"vision_heads", facts.vision_heads},
          {"vision_hidden_size", facts.vision_hidden_size},
          {"has_class_token", facts.has_class_token},
          {"has_text_tower", facts.has_text_tower},
          {"policy_defaults", to_json(std::span<const PolicyDefault>(facts.policy_defaults))}};
}

Json to_json(const Stats& stats) {
  Json kernels = Json::object();
  for (const auto& [op, kernel] : stats.kernels) kernels[op] = kernel;
  Json json = {{"prompt_tokens", stats.prompt_tokens},
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
               {"kv_bytes_most", stats.kv_bytes_most},
               {"peak_memory_bytes", stats.peak_memory_bytes},
               {"threads", stats.threads},
               {"kernels", kernels}};
  if (stats.solved) json["solved"] = to_json(*stats.solved);
  return json;
}

Json to_json(const Result& result) {
  Json points = Json::array();
  for (const PointTrace& point : result.points) points.push_back(to_json(point));
  Json json = {{"text", result.text},
               {"token_ids", result.token_ids},
               {"finish_reason", name_of(result.finish_reason)},
               {"prompt_token_ids", result.prompt_token_ids},
               {"prompt", result.prompt},
               {"policy", result.policy},
               {"points", points},
               {"kept", result.kept},
               {"stats", to_json(result.stats)}};
  if (!result.logprobs.empty()) json["logprobs"] = to_json(result.logprobs);
  return json;
}

std::string to_line(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string json_of(const Result& result) {
  return to_line(to_json(result));
}

std::string json_of(const Stats& stats) {
  return to_line(to_json(stats));
}

std::string json_of(const SchedulerLoad& load) {
  return to_line(to_json(load));
}

std::string json_of(const ModelFacts& facts) {
  return to_line(to_json(facts));
}

std::string json_of(const PromptTrace& prompt) {
  return to_line(to_json(prompt));
}

std::string json_of(const PointTrace& point) {
  return to_line(whole(point));
}

std::string json_of(std::span<const PointTrace> points) {
  Json list = Json::array();
  for (const PointTrace& point : points) list.push_back(whole(point));
  return to_line(list);
}

}  // namespace espalier
