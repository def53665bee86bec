// SPDX-License-Identifier: Apache-2.0
// Engines and results of espalier.h.
#include "espalier/engine.h"

#include "c_api/call.h"
#include "c_api/handles.h"
#include "c_api/request.h"
#include "espalier/json.h"

using namespace espalier;
using namespace espalier::c_api;

namespace {

std::optional<ComputeDtype> dtype_of(espalier_dtype dtype) {
  switch (dtype) {
    case ESPALIER_DTYPE_FLOAT32:
      return ComputeDtype::kFloat32;
    case ESPALIER_DTYPE_BFLOAT16:
      return ComputeDtype::kBFloat16;
    case ESPALIER_DTYPE_FLOAT16:
      return ComputeDtype::kFloat16;
    case ESPALIER_DTYPE_OF_CHECKPOINT:
      break;
  }
  return std::nullopt;
}

LogLevel level_of(espalier_log_level level) {
  switch (level) {
    case ESPALIER_LOG_VERBOSE:
      return LogLevel::kVerbose;
    case ESPALIER_LOG_SILENT:
      return LogLevel::kSilent;
    case ESPALIER_LOG_WARNING:
      break;
  }
  return LogLevel::kWarning;
}

EngineOptions options_of(const espalier_engine_options* given) {
  const espalier_engine_options from = read_struct_or_defaults(given, "engine_options");
  EngineOptions options;
  options.dtype = dtype_of(constant(from.dtype, ESPALIER_DTYPE_FLOAT16, "engine_options.dtype"));
  options.int8_weights = from.int8_weights != 0;
  const auto device = constant(from.device, ESPALIER_DEVICE_CUDA, "engine_options.device");
  options.device = device == ESPALIER_DEVICE_CUDA ? DeviceKind::kCuda : DeviceKind::kCpu;
  options.decode_graphs = from.no_decode_graphs == 0;
  if (from.threads < 0 || from.threads > 1024)
    throw Error("engine_options.threads: expected 0 to 1024, got " + std::to_string(from.threads));
  options.threads = static_cast<int>(from.threads);
  options.chat_template = text_or(from.chat_template, "");
  options.image_cache_bytes = from.image_cache_bytes;
  options.prefix_cache_bytes = from.prefix_cache_bytes;
  if (from.on_progress)
    options.on_progress = [from](std::string_view stage, int64_t done, int64_t total) {
      from.on_progress(from.user, std::string(stage).c_str(), done, total);
    };
  options.log_level = level_of(constant(from.log_level, ESPALIER_LOG_SILENT, "engine_options.log_level"));
  if (from.on_log)
    options.log = [on_log = from.on_log, user = from.user](LogLevel level, std::string_view message) {
      const std::string line(message);  // which ends with a zero byte
      on_log(user, level == LogLevel::kVerbose ? ESPALIER_LOG_VERBOSE : ESPALIER_LOG_WARNING, line.c_str(),
             line.size());
    };
  return options;
}

template <typename Element>
const Element* list_of(const std::vector<Element>* list, size_t* count) {
  if (count) *count = list ? list->size() : 0;
  return list ? list->data() : nullptr;
}

}  // namespace

extern "C" {

espalier_code espalier_engine_load(const char* folder, const espalier_engine_options* options, espalier_engine** engine,
                                   espalier_error** error) {
  return make_handle(engine, "engine", error, [&] {
    return espalier_engine{
        std::make_shared<const Engine>(Engine::load(needed_text(folder, "folder"), options_of(options)))};
  });
}

void espalier_engine_free(espalier_engine* engine) {
  delete engine;
}

espalier_code espalier_engine_facts_json(const espalier_engine* engine, char** json, espalier_error** error) {
  return make_text(json, "json", error, [&] { return json_of(needed(engine, "engine").engine->facts()); });
}

espalier_code espalier_engine_count_tokens(const espalier_engine* engine, const espalier_prompt* prompt,
                                           int64_t* tokens, int64_t* max_positions, espalier_error** error) {
  return call(error, [&] {
    const TokenCounts counts = needed(engine, "engine").engine->count_tokens(needed(prompt, "prompt").prompt);
    if (tokens) *tokens = counts.prompt_tokens;
    if (max_positions) *max_positions = counts.max_positions;
  });
}

espalier_code espalier_engine_generate(const espalier_engine* engine, const espalier_request* request,
                                       const espalier_callbacks* callbacks, espalier_result** result,
                                       espalier_error** error) {
  return make_handle(result, "result", error, [&] {
    const Engine& asked = *needed(engine, "engine").engine;
    return espalier_result{std::make_shared<const Result>(
        asked.generate(request_of(needed(request, "request")), callbacks_of(callbacks)))};
  });
}

const char* espalier_result_text(const espalier_result* result, size_t* length) {
  if (length) *length = result ? result->result->text.size() : 0;
  return result ? result->result->text.c_str() : nullptr;
}

const char* espalier_result_finish_reason(const espalier_result* result) {
  return result ? name_of(result->result->finish_reason).data() : nullptr;  // a literal, which ends with a zero byte
}

const int32_t* espalier_result_tokens(const espalier_result* result, size_t* count) {
  return list_of(result ? &result->result->token_ids : nullptr, count);
}

const int32_t* espalier_result_prompt_tokens(const espalier_result* result, size_t* count) {
  return list_of(result ? &result->result->prompt_token_ids : nullptr, count);
}

const int64_t* espalier_result_kept(const espalier_result* result, size_t* count) {
  return list_of(result ? &result->result->kept : nullptr, count);
}

espalier_code espalier_result_json(const espalier_result* result, char** json, espalier_error** error) {
  return make_text(json, "json", error, [&] { return json_of(*needed(result, "result").result); });
}

espalier_code espalier_result_stats_json(const espalier_result* result, char** json, espalier_error** error) {
  return make_text(json, "json", error, [&] { return json_of(needed(result, "result").result->stats); });
}

espalier_code espalier_result_trace_json(const espalier_result* result, char** json, espalier_error** error) {
  return make_text(json, "json", error,
                   [&] { return json_of(std::span<const PointTrace>(needed(result, "result").result->points)); });
}

void espalier_result_free(espalier_result* result) {
  delete result;
}

}  // extern "C"
