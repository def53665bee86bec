// SPDX-License-Identifier: Apache-2.0
#include "serve/asked.h"

#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "espalier/error.h"
#include "serve/api_error.h"
#include "serve/api_keys.h"
#include "serve/json_object.h"
#include "serve/policies.h"

namespace espalier::serve {

namespace {

using Json = nlohmann::json;

constexpr int64_t kDefaultTokens = 256;
constexpr int64_t kMostTokens = 1'000'000;

// Fields of OpenAI's that clients send with values that ask for nothing: these are taken, others refused.
const std::vector<std::pair<const char*, std::vector<Json>>>& neutral_fields() {
  static const std::vector<std::pair<const char*, std::vector<Json>>> fields = {
      {"presence_penalty", {0}},
      {"frequency_penalty", {0}},
      {"logit_bias", {Json::object()}},
      {"response_format", {{{"type", "text"}}}},
      {"tools", {Json::array()}},
      {"tool_choice", {"none", "auto"}},
      {"parallel_tool_calls", {true, false}},
      {"store", {false}},
      {"service_tier", {"auto", "default"}},
      {"modalities", {{"text"}}},
      {"best_of", {1}},
      {"echo", {false}},
      {"suffix", {""}},
  };
  return fields;
}

void take_neutral_fields(JsonObject& fields) {
  for (const auto& [name, values] : neutral_fields())
    if (const Json* value = fields.find(name); value && std::ranges::find(values, *value) == values.end())
      throw ApiError(400, "unsupported_value", std::string(name) + ": " + shown(*value) + " is not served", name);
}

// Texts of one request, counted.
class TextLimit {
 public:
  explicit TextLimit(int64_t bytes) : left_(bytes), most_(bytes) {}
  std::string counted(std::string text, const std::string& param) {
    left_ -= static_cast<int64_t>(text.size());
    if (left_ < 0)
      throw ApiError(413, "text_too_long", param + ": at most " + std::to_string(most_) + " bytes of text a request",
                     param);
    return text;
  }

 private:
  int64_t left_;
  const int64_t most_;
};

void check_model(JsonObject& fields, const ServeOptions& options) {
  const auto model = fields.string("model");
  if (model && *model != options.model_name)
    throw ApiError(404, "model_not_found",
                   "model: there is no " + shown(Json(*model)) + " here, but " + options.model_name, "model");
}

std::vector<std::string> read_stops(JsonObject& fields, const RequestLimits& limits) {
  const Json* stop = fields.find("stop");
  if (!stop) return {};
  const auto is_good = [&](const Json& text) {
    return text.is_string() && !text.get_ref<const std::string&>().empty() &&
           std::ssize(text.get_ref<const std::string&>()) <= limits.stop_bytes;
  };
  const Json list = stop->is_array() ? *stop : Json::array({*stop});
  if (std::ssize(list) > limits.stops || !std::ranges::all_of(list, is_good))
    fields.refuse("stop", "a string of 1 to " + std::to_string(limits.stop_bytes) + " bytes, or a list of at most " +
                              std::to_string(limits.stops));
  return list.get<std::vector<std::string>>();
}

// What chat and completion have in common; `salt` has been read.
void read_common(JsonObject& fields, const ServeOptions& options, Asked& asked) {
  check_model(fields, options);
  GenerationOptions& generation = asked.request.options;
  generation.max_new_tokens = fields.integer("max_tokens", 0, kMostTokens).value_or(kDefaultTokens);
  if (asked.is_chat)
    if (const auto tokens = fields.integer("max_completion_tokens", 0, kMostTokens))
      generation.max_new_tokens = *tokens;
  const auto temperature = fields.number("temperature", 0, 100);
  generation.top_p = fields.number("top_p", 0, 1);
  if (generation.top_p == 0) fields.refuse("top_p", "a number above 0");
  generation.top_k = fields.integer("top_k", -1, kMostTokens);
  if (generation.top_k == -1) generation.top_k = 0;  // as others write "all"
  generation.repetition_penalty = fields.number("repetition_penalty", 0, 1e6);
  if (generation.repetition_penalty == 0) fields.refuse("repetition_penalty", "a number above 0");
  // 0 is argmax; without a penalty of its own, plain argmax.
  if (temperature == 0) {
    generation.top_p.reset();
    generation.top_k.reset();
    generation.do_sample = false;
    generation.greedy = !generation.repetition_penalty;
  } else {
    generation.temperature = temperature;
  }
  generation.seed = static_cast<uint64_t>(fields.integer("seed", INT64_MIN, INT64_MAX).value_or(0));
  generation.stop = read_stops(fields, options.limits);
  generation.ignore_eos = fields.boolean("ignore_eos").value_or(false);
  asked.samples = static_cast<int>(fields.integer("n", 1, options.limits.samples).value_or(1));
  asked.streams = fields.boolean("stream").value_or(false);
  if (const Json* stream = fields.find("stream_options")) {
    if (!asked.streams) fields.refuse("stream_options", "nothing, without stream");
    JsonObject of_stream(*stream, "stream_options");
    asked.tells_usage = of_stream.boolean("include_usage").value_or(false);
    of_stream.refuse_unknown();
  }
  asked.tells_stats = fields.boolean("stats").value_or(false);
  asked.policy = fields.string("pruning").value_or(options.policy);
}

void check_spec(const Policies& policies, const std::string& spec, const std::string& own, const std::string& param) {
  if (spec == own) return;
  try {
    policies.check_client_spec(spec);
  } catch (const Error& error) {
    throw ApiError(400, "invalid_pruning", param + ": " + error.what(), param);
  }
}

void choose_policy(const AskedOf& of, const Policies::OfPictures& own, Asked& asked) {
  check_spec(of.policies, asked.policy, of.options.policy, "pruning");
  for (const auto& [image, spec] : own)
    check_spec(of.policies, spec, of.options.low_detail, "pruning of picture " + std::to_string(image));
  asked.request.policy = asked.policy;
  asked.policy_name = own.empty() ? policy_name(asked.policy) : "mixed";
  try {
    asked.request.custom = of.policies.custom(asked.policy, own);
  } catch (const Error& error) {
    throw ApiError(400, "invalid_pruning", std::string("pruning: ") + error.what(), "pruning");
  }
}

std::string salt_of(JsonObject& fields, const ServeOptions& options) {
  const auto user = fields.string("user");
  return user && options.isolate_users ? "user " + *user : std::string();
}

// Requests that begin alike have the same: one user's system prompt and first turn, or the first kilobyte of a text.
std::string prefix_of(const ServeOptions& options, const std::string& salt, const std::string& beginning) {
  constexpr size_t kDigits = 32;
  return hexadecimal(sha256(options.model_name + '\0' + salt + '\0' + beginning)).substr(0, kDigits);
}

struct Turns {
  Chat chat;
  std::vector<std::pair<int64_t, std::string>> own_pruning;  // of pictures, by their place
  std::string beginning;
};

class TurnReader {
 public:
  TurnReader(const AskedOf& of, const std::string& salt)
      : pictures_(of.options, of.pictures, salt), text_(of.options.limits.text_bytes) {}

  Turns read(const Json& messages) {
    if (!messages.is_array() || messages.empty())
      throw ApiError(400, "invalid_value", "messages: expected a list of turns, got " + shown(messages), "messages");
    bool is_in_beginning = true;
    for (size_t i = 0; i < messages.size(); ++i) {
      turns_.chat.messages.push_back(read_message(messages[i], "messages[" + std::to_string(i) + "]"));
      if (!is_in_beginning) continue;
      turns_.beginning += messages[i].dump(-1, ' ', false, Json::error_handler_t::replace);
      is_in_beginning = turns_.chat.messages.back().role != "user";
    }
    return std::move(turns_);
  }
  std::shared_ptr<void> counted() const { return pictures_.counted(); }

 private:
  Message read_message(const Json& json, const std::string& path) {
    JsonObject fields(json, path);
    Message message{.role = fields.string_at("role"), .content = {}};
    if (message.role == "developer") message.role = "system";  // OpenAI's newer word
    if (message.role != "system" && message.role != "user" && message.role != "assistant")
      fields.refuse("role", "system, developer, user or assistant");
    const Json& content = fields.at("content", "a text or a list of parts");
    if (content.is_string()) {
      message.content.emplace_back(TextPart{text_.counted(content.get<std::string>(), path + ".content")});
    } else if (content.is_array()) {
      for (size_t i = 0; i < content.size(); ++i)
        message.content.push_back(
            read_part(content[i], path + ".content[" + std::to_string(i) + "]", message.role == "user"));
    } else {
      fields.refuse("content", "a text or a list of parts");
    }
    fields.refuse_unknown();
    return message;
  }

  Part read_part(const Json& json, const std::string& path, bool may_be_picture) {
    JsonObject fields(json, path);
    const std::string type = fields.string_at("type");
    if (type == "text") {
      TextPart part{text_.counted(fields.string_at("text"), path + ".text")};
      fields.refuse_unknown();
      return part;
    }
    if (type != "image_url") fields.refuse("type", "text or image_url");
    if (!may_be_picture) throw ApiError(400, "invalid_value", path + ": pictures stand in turns of the user", path);
    Picture picture = pictures_.read(fields);
    fields.refuse_unknown();
    if (!picture.pruning.empty()) turns_.own_pruning.emplace_back(images_, picture.pruning);
    ++images_;
    return picture.part;
  }

  PictureReader pictures_;
  TextLimit text_;
  Turns turns_;
  int64_t images_ = 0;
};

}  // namespace

Asked read_chat_request(const std::string& body, const AskedOf& of) {
  const Json json = parse_body(body);
  JsonObject fields(json, "");
  Asked asked;
  read_common(fields, of.options, asked);
  asked.tells_logprobs = fields.boolean("logprobs").value_or(false);
  const auto top = fields.integer("top_logprobs", 0, 20);
  if (top && !asked.tells_logprobs) fields.refuse("top_logprobs", "nothing, without logprobs");
  if (asked.tells_logprobs) asked.request.options.top_logprobs = top.value_or(0);
  asked.request.salt = salt_of(fields, of.options);
  const Json& messages = fields.at("messages", "a list of turns");
  take_neutral_fields(fields);
  fields.find("metadata");
  fields.refuse_unknown();
  TurnReader reader(of, asked.request.salt);
  Turns turns = reader.read(messages);
  if (turns.chat.messages.back().role != "user")
    throw ApiError(400, "invalid_value", "messages: the last turn must be the user's", "messages");
  asked.counted = reader.counted();
  asked.request.prompt = std::move(turns.chat);
  asked.prefix = prefix_of(of.options, asked.request.salt, turns.beginning);
  choose_policy(of, turns.own_pruning, asked);
  return asked;
}

Asked read_completion_request(const std::string& body, const AskedOf& of) {
  const Json json = parse_body(body);
  JsonObject fields(json, "");
  Asked asked;
  asked.is_chat = false;
  read_common(fields, of.options, asked);
  if (const auto top = fields.integer("logprobs", 0, 20)) {
    asked.tells_logprobs = true;
    asked.request.options.top_logprobs = top;
  }
  asked.request.salt = salt_of(fields, of.options);
  const Json& given = fields.at("prompt", "a text");
  const Json& text = given.is_array() && given.size() == 1 ? given.front() : given;
  if (!text.is_string()) fields.refuse("prompt", "a text");
  RawPrompt prompt{.text = TextLimit(of.options.limits.text_bytes).counted(text.get<std::string>(), "prompt"),
                   .images = {},
                   .example_begins = {}};
  take_neutral_fields(fields);
  const Json* images = fields.find("images");
  fields.refuse_unknown();
  PictureReader pictures(of.options, of.pictures, asked.request.salt);
  std::vector<std::pair<int64_t, std::string>> own;
  if (images && !images->is_array()) fields.refuse("images", "a list of image_url parts");
  for (size_t i = 0; images && i < images->size(); ++i) {
    JsonObject part((*images)[i], "images[" + std::to_string(i) + "]");
    if (part.string("type").value_or("image_url") != "image_url") part.refuse("type", "image_url");
    Picture picture = pictures.read(part);
    part.refuse_unknown();
    if (!picture.pruning.empty()) own.emplace_back(static_cast<int64_t>(i), picture.pruning);
    prompt.images.push_back(std::move(picture.part));
  }
  constexpr size_t kBeginning = 1024;
  asked.counted = pictures.counted();
  asked.prefix = prefix_of(of.options, asked.request.salt, prompt.text.substr(0, kBeginning));
  asked.request.prompt = std::move(prompt);
  choose_policy(of, own, asked);
  return asked;
}

TokenizeAsked read_tokenize_request(const std::string& body, const AskedOf& of) {
  const Json json = parse_body(body);
  JsonObject fields(json, "");
  check_model(fields, of.options);
  TokenizeAsked asked;
  asked.add_special = fields.boolean("add_special_tokens").value_or(true);
  asked.text = fields.string("prompt");
  const Json* messages = fields.find("messages");
  if (asked.text.has_value() == (messages != nullptr))
    throw ApiError(400, "missing_field", "expected one of prompt and messages", "prompt");
  fields.refuse_unknown();
  if (asked.text) {
    TextLimit(of.options.limits.text_bytes).counted(*asked.text, "prompt");
    return asked;
  }
  TurnReader reader(of, "");
  asked.prompt = reader.read(*messages).chat;
  asked.counted = reader.counted();
  return asked;
}

}  // namespace espalier::serve
