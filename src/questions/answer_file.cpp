// SPDX-License-Identifier: Apache-2.0
#include "questions/answer_file.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "base/json_fields.h"
#include "base/json_lines.h"
#include "base/json_schema.h"
#include "base/sha256.h"

namespace espalier {

namespace {

using Json = nlohmann::ordered_json;

GivenAnswer read_answer(const JsonLine& line) {
  const JsonFields fields(line.value, line.where);
  const nlohmann::json* id = fields.find("question_id");
  if (!id) fields.fail("question_id", "a whole number or a string");
  const JsonFields metadata = fields.object_at("metadata");
  return {.question_id = id->dump(),
          .prompt = fields.string_at("prompt"),
          .text = fields.string_at("text"),
          .model_id = fields.string_at("model_id"),
          .policy = metadata.string_at("policy"),
          .prompt_tokens = metadata.integer("prompt_tokens").value_or(0),
          .image_tokens = metadata.integer("image_tokens").value_or(0),
          .new_tokens = metadata.integer("new_tokens").value_or(0),
          .image_tokens_mean = metadata.number("image_tokens_mean").value_or(0),
          .finish_reason = metadata.string("finish_reason").value_or("")};
}

// Names the answer among all: of its question, model and policy.
std::string answer_id(const GivenAnswer& a) {
  constexpr size_t kDigits = 22;
  Sha256 sha;
  for (const std::string& part : {a.question_id, a.prompt, a.text, a.model_id, a.policy}) {
    sha.add(part);
    sha.add(std::string_view("\0", 1));
  }
  return sha.hex().substr(0, kDigits);
}

std::string line_of(const GivenAnswer& a) {
  const Json json = {{"question_id", Json::parse(a.question_id)},
                     {"prompt", a.prompt},
                     {"text", a.text},
                     {"answer_id", answer_id(a)},
                     {"model_id", a.model_id},
                     {"metadata",
                      {{"schema", kJsonSchema},
                       {"policy", a.policy},
                       {"prompt_tokens", a.prompt_tokens},
                       {"image_tokens", a.image_tokens},
                       {"image_tokens_mean", a.image_tokens_mean},
                       {"new_tokens", a.new_tokens},
                       {"finish_reason", a.finish_reason}}}};
  return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace

AnswerFile::AnswerFile(std::filesystem::path file) : lines_(std::move(file)) {
  for (const JsonLine& line : json_lines(lines_.read(), path().string())) all_.push_back(read_answer(line));
}

void AnswerFile::add(const GivenAnswer& answer) {
  lines_.add(line_of(answer));
  all_.push_back(answer);
}

}  // namespace espalier
