// SPDX-License-Identifier: Apache-2.0
// What is fuzzed: functions that take any bytes, as one of the files or texts that others hand to Espalier. A target
// may refuse its input as a user would be told; any other exception, crash, hang or broken promise is a defect.
// fuzzer.cpp gives them to libFuzzer, corpus.cpp feeds them files.
#pragma once

#include <span>
#include <string_view>

namespace espalier::fuzz {

struct Target {
  std::string_view name;  // also of its folder in tests/fuzz/seeds
  void (*run)(std::string_view input);
};
std::span<const Target> targets();
const Target* find_target(std::string_view name);  // nullptr when there is none

void run_safetensors(std::string_view file);
void run_config(std::string_view files);  // config.json and what lies beside it, one NUL between two
void run_tokenizer(std::string_view tokenizer_json);
void run_encode(std::string_view text);
void run_chat_template(std::string_view source);
void run_messages(std::string_view messages_json);
void run_picture(std::string_view file);
void run_layout(std::string_view layout_json);
void run_signals(std::string_view input);  // a byte that chooses the policy, then a safetensors file
void run_policy_spec(std::string_view spec);
void run_recipe(std::string_view json);
void run_atp_weights(std::string_view files);  // the settings' JSON, NUL, the safetensors file
void run_keepmask(std::string_view files);     // the result's JSON, then NUL and its safetensors file if it has one
void run_http_body(std::string_view body);

}  // namespace espalier::fuzz
