// SPDX-License-Identifier: Apache-2.0
#include "serve/answer_json.h"

#include <chrono>
#include <nlohmann/json.hpp>
#include <random>
#include <utility>

#include "espalier/json.h"
#include "serve/metrics.h"

namespace espalier::serve {

namespace {

using Json = nlohmann::ordered_json;

std::string text_of(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string event_of(const Json& json) {
  return "data: " + text_of(json) + "\n\n";
}

std::string new_id(const char* kind) {
  static thread_local std::mt19937_64 draws{std::random_device{}()};
  constexpr char kDigits[] = "0123456789abcdef";
  std::string id = kind;
  for (int i = 0; i < 24; ++i) id += kDigits[draws() >> 60];
  return id;
}

const char* finish_of(FinishReason reason) {
  return reason == FinishReason::kLength ? "length" : "stop";
}

// As it stands behind other text: the first token of a text may lose its space.
std::string token_text(const Tokenizer& tokenizer, int32_t id) {
  const std::optional<int32_t> before = tokenizer.id_of("a");
  if (!before) return tokenizer.decode(std::span(&id, 1));
  const int32_t ids[] = {*before, id};
  const std::string alone = tokenizer.decode(std::span(ids, 1)), both = tokenizer.decode(ids);
  return both.starts_with(alone) ? both.substr(alone.size()) : tokenizer.decode(std::span(&id, 1));
}

Json bytes_of(const std::string& text) {
  if (text.find("\xEF\xBF\xBD") != std::string::npos) return nullptr;  // a part of a character
  Json bytes = Json::array();
  for (const char c : text) bytes.push_back(static_cast<uint8_t>(c));
  return bytes;
}

// Infinity is no JSON.
double finite(float logprob) {
  return logprob < -9999.0f ? -9999.0 : static_cast<double>(logprob);
}

Json chat_logprobs(const Tokenizer& tokenizer, std::span<const TokenLogprobs> tokens) {
  const auto one = [&](int32_t id, float logprob) {
    const std::string text = token_text(tokenizer, id);
    return Json{{"token", text}, {"logprob", finite(logprob)}, {"bytes", bytes_of(text)}};
  };
  Json content = Json::array();
  for (const TokenLogprobs& token : tokens) {
    Json entry = one(token.id, token.logprob);
    entry["top_logprobs"] = Json::array();
    for (const auto& [id, logprob] : token.top) entry["top_logprobs"].push_back(one(id, logprob));
    content.push_back(std::move(entry));
  }
  return {{"content", content}};
}

Json completion_logprobs(const Tokenizer& tokenizer, std::span<const TokenLogprobs> tokens, size_t offset) {
  Json texts = Json::array(), logprobs = Json::array(), tops = Json::array(), offsets = Json::array();
  for (const TokenLogprobs& token : tokens) {
    const std::string text = token_text(tokenizer, token.id);
    texts.push_back(text);
    logprobs.push_back(finite(token.logprob));
    Json top = Json::object();
    for (const auto& [id, logprob] : token.top) top[token_text(tokenizer, id)] = finite(logprob);
    tops.push_back(std::move(top));
    offsets.push_back(offset);
    offset += text.size();
  }
  return {{"tokens", texts}, {"token_logprobs", logprobs}, {"top_logprobs", tops}, {"text_offset", offsets}};
}

Json usage_of(const std::vector<const Result*>& samples) {
  const Stats& first = samples[0]->stats;
  int64_t generated = 0;
  for (const Result* result : samples) generated += result->stats.new_tokens;
  const int64_t images = image_tokens_of(first);
  return {{"prompt_tokens", first.prompt_tokens},
          {"completion_tokens", generated},
          {"total_tokens", first.prompt_tokens + generated},
          {"prompt_tokens_details",
           {{"cached_tokens", first.reused_tokens},
            {"image_tokens", images},
            {"pruned_tokens", images - image_tokens_left(first)}}}};
}

// Of what the library says of a request, the part that clients are told.
Json stats_of(const Result& result, const std::string& policy) {
  const Json all = Json::parse(json_of(result.stats));
  Json json = {{"policy", policy}};
  for (const char* name : {"image_tokens", "image_tokens_per_layer", "tokens_per_layer", "kv_tokens_per_layer",
                           "kv_bytes", "kv_bytes_unpruned"})
    json[name] = all[name];
  json["prefill_flops"] = all["flops"]["prefill"];
  json["prefill_flops_unpruned"] = all["flops"]["prefill_unpruned"];
  json["time_ms"] = all["time_ms"];
  if (all.contains("solved")) json["solved"] = all["solved"];
  return json;
}

}  // namespace

AnswerForm::AnswerForm(const Tokenizer& of, const Asked& asked, std::string model)
    : tokenizer_(of),
      is_chat_(asked.is_chat),
      tells_usage_(asked.tells_usage),
      tells_stats_(asked.tells_stats),
      tells_logprobs_(asked.tells_logprobs),
      id_(new_id(asked.is_chat ? "chatcmpl-" : "cmpl-")),
      model_(std::move(model)),
      policy_(asked.policy),
      created_(std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch())
                   .count()),
      offsets_(static_cast<size_t>(asked.samples), 0) {}

std::string AnswerForm::whole(const std::vector<const Result*>& samples) const {
  Json choices = Json::array();
  for (size_t i = 0; i < samples.size(); ++i) {
    const Result& result = *samples[i];
    Json choice = {{"index", i}};
    if (is_chat_)
      choice["message"] = {{"role", "assistant"}, {"content", result.text}};
    else
      choice["text"] = result.text;
    choice["logprobs"] = !tells_logprobs_ ? Json()
                         : is_chat_       ? chat_logprobs(tokenizer_, result.logprobs)
                                          : completion_logprobs(tokenizer_, result.logprobs, 0);
    choice["finish_reason"] = finish_of(result.finish_reason);
    if (tells_stats_) choice["espalier"] = stats_of(result, policy_);
    choices.push_back(std::move(choice));
  }
  return text_of({{"id", id_},
                  {"object", is_chat_ ? "chat.completion" : "text_completion"},
                  {"created", created_},
                  {"model", model_},
                  {"choices", choices},
                  {"usage", usage_of(samples)}}) +
         "\n";
}

std::string AnswerForm::event(int sample, const std::string& piece, bool is_first,
                              std::span<const TokenLogprobs> tokens, const char* finish, const Result* result) const {
  Json choice = {{"index", sample}};
  if (is_chat_) {
    Json delta = Json::object();
    if (is_first) delta["role"] = "assistant";
    if (is_first || !piece.empty() || !tokens.empty()) delta["content"] = piece;
    choice["delta"] = std::move(delta);
  } else {
    choice["text"] = piece;
  }
  choice["logprobs"] = !tells_logprobs_ || tokens.empty() ? Json()
                       : is_chat_                         ? chat_logprobs(tokenizer_, tokens)
                                  : completion_logprobs(tokenizer_, tokens, offsets_[static_cast<size_t>(sample)]);
  choice["finish_reason"] = finish ? Json(finish) : Json();
  if (result && tells_stats_) choice["espalier"] = stats_of(*result, policy_);
  Json json = {{"id", id_},
               {"object", is_chat_ ? "chat.completion.chunk" : "text_completion"},
               {"created", created_},
               {"model", model_},
               {"choices", Json::array({choice})}};
  if (tells_usage_) json["usage"] = nullptr;
  return event_of(json);
}

std::string AnswerForm::first_event(int sample) const {
  return is_chat_ ? event(sample, "", true, {}, nullptr, nullptr) : std::string();
}

std::string AnswerForm::piece_event(int sample, const std::string& piece, std::span<const TokenLogprobs> tokens) {
  std::string text = event(sample, piece, false, tokens, nullptr, nullptr);
  for (const TokenLogprobs& token : tokens)
    offsets_[static_cast<size_t>(sample)] += token_text(tokenizer_, token.id).size();
  return text;
}

std::string AnswerForm::end_event(int sample, const Result& result, std::span<const TokenLogprobs> tokens) {
  return event(sample, "", false, tokens, finish_of(result.finish_reason), &result);
}

std::string AnswerForm::usage_event(const std::vector<const Result*>& samples) const {
  if (!tells_usage_) return {};
  return event_of({{"id", id_},
                   {"object", is_chat_ ? "chat.completion.chunk" : "text_completion"},
                   {"created", created_},
                   {"model", model_},
                   {"choices", Json::array()},
                   {"usage", usage_of(samples)}});
}

std::string AnswerForm::error_event(const std::string& json) {
  return "data: " + json + "\n\n";
}

std::string AnswerForm::done_event() {
  return "data: [DONE]\n\n";
}

}  // namespace espalier::serve
