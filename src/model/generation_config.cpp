// SPDX-License-Identifier: Apache-2.0
#include "model/generation_config.h"

#include <limits>
#include <nlohmann/json.hpp>
#include <string>

#include "base/json_fields.h"
#include "base/json_file.h"
#include "espalier/error.h"

namespace espalier {
namespace {

using nlohmann::json;

bool is_id(const json& value) {
  return value.is_number_integer() && value >= 0 && value <= std::numeric_limits<int32_t>::max();
}

void read_ids(const JsonFields& fields, GenerationConfig& out) {
  if (const json* pad = fields.find("pad_token_id"); pad && !out.pad_id) {
    // -1 is how some configs say that there is none
    if (!is_id(*pad) && *pad != -1) fields.fail("pad_token_id", "a token id");
    if (is_id(*pad)) out.pad_id = pad->get<int32_t>();
  }
  const json* eos = fields.find("eos_token_id");
  if (!eos || !out.eos_ids.empty()) return;
  for (const json& id : eos->is_array() ? *eos : json::array({*eos})) {
    if (!is_id(id)) fields.fail("eos_token_id", "a token id or a list of them");
    out.eos_ids.push_back(id.get<int32_t>());
  }
}

void read_sampling(const JsonFields& fields, GenerationConfig& out) {
  out.do_sample = fields.boolean("do_sample").value_or(out.do_sample);
  out.temperature = fields.number("temperature").value_or(out.temperature);
  out.top_k = fields.integer("top_k").value_or(out.top_k);
  out.top_p = fields.number("top_p").value_or(out.top_p);
  out.repetition_penalty = fields.number("repetition_penalty").value_or(out.repetition_penalty);
  if (out.temperature < 0) fields.fail("temperature", "a number above 0");
  if (out.temperature == 0) {  // how some files ask for plain argmax
    out.temperature = 1.0;
    out.do_sample = false;
  }
  if (out.top_k < 0) fields.fail("top_k", "0 or more");
  if (out.top_p <= 0 || out.top_p > 1) fields.fail("top_p", "a number above 0 and up to 1");
  if (out.repetition_penalty <= 0) fields.fail("repetition_penalty", "a number above 0");
}

}  // namespace

GenerationConfig read_generation_config(const std::filesystem::path& folder) {
  GenerationConfig out;
  if (const auto path = folder / "generation_config.json"; is_there(path)) {
    const json config = read_json_file(path);
    const std::string file = path.string();
    const JsonFields fields(config, file);
    read_ids(fields, out);
    read_sampling(fields, out);
  }
  if (const auto path = folder / "config.json"; is_there(path)) {
    const json config = read_json_file(path);
    const std::string file = path.string();
    const JsonFields fields(config, file);
    read_ids(fields, out);
    if (const json* text = fields.find("text_config")) read_ids(JsonFields(*text, file, "text_config."), out);
  }
  return out;
}

}  // namespace espalier
