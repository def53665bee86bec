// SPDX-License-Identifier: Apache-2.0
#include "c_api/request.h"

#include "c_api/call.h"
#include "c_api/handles.h"
#include "espalier/json.h"

namespace espalier::c_api {

namespace {

// A number whose 0 stands for the checkpoint's.
template <typename Number>
std::optional<Number> unless_zero(Number value) {
  return value == 0 ? std::nullopt : std::optional(value);
}

Continue continue_of(int32_t answer) {
  if (answer == ESPALIER_GO) return Continue::kGo;
  return answer == ESPALIER_STOP ? Continue::kStop : Continue::kCancel;
}

template <typename Trace>
std::function<void(size_t, const Trace&)> traced(void (*callback)(void*, const char*, size_t), void* user) {
  if (!callback) return {};
  return [callback, user](size_t, const Trace& trace) {
    const std::string json = json_of(trace);
    callback(user, json.c_str(), json.size());
  };
}

}  // namespace

GenerationOptions generation_of(const espalier_generation_options* given) {
  const espalier_generation_options from = read_struct_or_defaults(given, "generation_options");
  GenerationOptions options;
  if (from.max_new_tokens != 0) options.max_new_tokens = from.max_new_tokens;
  const auto sampling = constant(from.sampling, ESPALIER_SAMPLING_GREEDY, "generation_options.sampling");
  options.greedy = sampling == ESPALIER_SAMPLING_GREEDY;
  if (sampling == ESPALIER_SAMPLING_ON) options.do_sample = true;
  if (sampling == ESPALIER_SAMPLING_OFF) options.do_sample = false;
  options.ignore_eos = from.ignore_eos != 0;
  options.temperature = unless_zero(from.temperature);
  options.top_k = from.top_k == -1 ? std::optional<int64_t>(0) : unless_zero(from.top_k);
  options.top_p = unless_zero(from.top_p);
  options.repetition_penalty = unless_zero(from.repetition_penalty);
  options.seed = from.seed;
  for (size_t i = 0; i < from.num_stop; ++i)
    options.stop.push_back(
        needed_text(&needed(from.stop, "generation_options.stop") ? from.stop[i] : nullptr, "generation_options.stop"));
  if (from.top_logprobs != 0 && from.logprobs == 0)
    throw Error("generation_options.top_logprobs: needs logprobs = 1, got " + std::to_string(from.logprobs));
  if (from.logprobs != 0) options.top_logprobs = from.top_logprobs;
  return options;
}

Request request_of(const espalier_request& given) {
  const espalier_request from = read_struct(given, "request");
  Request request;
  request.prompt = needed(from.prompt, "request.prompt").prompt;
  request.policy = text_or(from.policy, "none");
  if (from.custom) request.custom = from.custom->policy;
  request.options = generation_of(from.generation);
  request.salt = text_or(from.salt, "");
  request.trace = from.trace != 0;
  return request;
}

Callbacks callbacks_of(const espalier_callbacks* given) {
  const espalier_callbacks from = read_struct_or_defaults(given, "callbacks");
  void* const user = from.user;
  Callbacks callbacks;
  if (from.on_text)
    callbacks.on_text = [from](size_t, std::string_view piece) {
      const std::string text(piece);  // which ends with a zero byte
      return continue_of(from.on_text(from.user, text.c_str(), text.size()));
    };
  if (from.on_token)
    callbacks.on_token = [from](size_t, int32_t id, const TokenLogprobs*) { from.on_token(from.user, id); };
  if (from.should_cancel) callbacks.should_cancel = [from] { return from.should_cancel(from.user) != 0; };
  if (from.on_progress)
    callbacks.on_progress = [from](std::string_view stage, int64_t done, int64_t total) {
      from.on_progress(from.user, std::string(stage).c_str(), done, total);
    };
  callbacks.on_prompt = traced<PromptTrace>(from.on_prompt, user);
  callbacks.on_point = traced<PointTrace>(from.on_point, user);
  if (from.on_end) callbacks.on_end = [from](size_t) { from.on_end(from.user); };
  return callbacks;
}

}  // namespace espalier::c_api
