// SPDX-License-Identifier: Apache-2.0
// What the parsers of config.json share: typed reading of one JSON object with errors that name file and field, and the
// parts that families have in common. For the parsers in src/families.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "espalier/error.h"
#include "model/config.h"
#include "model/layers.h"

namespace espalier {

// One object of the file, with its place in it for messages. Missing keys and nulls take the default.
class Section {
 public:
  using Json = nlohmann::json;

  Section(const Json& json, std::string where) : json_(json), where_(std::move(where)) {
    if (!json.is_object()) throw Error(where_ + ": an object was expected, got " + json.type_name());
  }

  bool has(const char* key) const { return json_.contains(key) && !json_.at(key).is_null(); }
  bool is_null(const char* key) const { return json_.contains(key) && json_.at(key).is_null(); }
  const Json& at(const char* key) const { return json_.at(key); }
  std::string field(const char* key) const { return where_ + ": " + key; }

  Section section(const char* key) const { return {has(key) ? at(key) : empty(), where_ + ": " + key}; }

  template <typename Int>
  Int integer(const char* key, Int fallback, int64_t low, int64_t high) const {
    if (!has(key)) return fallback;
    const Json& value = at(key);
    if (!value.is_number_integer() || value.get<int64_t>() < low || value.get<int64_t>() > high)
      throw Error(field(key) + ": an integer from " + std::to_string(low) + " to " + std::to_string(high) +
                  " was expected, got " + value.dump());
    return static_cast<Int>(value.get<int64_t>());
  }
  double number(const char* key, double fallback, double above) const {
    if (!has(key)) return fallback;
    const Json& value = at(key);
    if (!value.is_number() || !(value.get<double>() > above))
      throw Error(field(key) + ": a number above " + std::to_string(above) + " was expected, got " + value.dump());
    return value.get<double>();
  }
  bool boolean(const char* key, bool fallback) const {
    if (!has(key)) return fallback;
    if (!at(key).is_boolean()) throw Error(field(key) + ": true or false was expected, got " + at(key).dump());
    return at(key).get<bool>();
  }
  std::string text(const char* key, const std::string& fallback) const {
    if (!has(key)) return fallback;
    if (!at(key).is_string()) throw Error(field(key) + ": a string was expected, got " + at(key).dump());
    return at(key).get<std::string>();
  }

 private:
  static const Json& empty() {
    static const Json object = Json::object();
    return object;
  }
  const Json& json_;
  std::string where_;
};

// Upper limit for sizes that have no other.
inline constexpr int64_t kLarge = int64_t{1} << 40;

Activation read_activation(const Section& section, const char* key, const std::string& fallback);
// `rope_scaling` of published files, `rope_parameters` of newer saves.
void read_rope(const Section& section, DecoderConfig& decoder);
// Sizes of a decoder over the defaults of its class; num_kv_heads 0 there means as many as heads.
void read_decoder_sizes(const Section& section, DecoderConfig& decoder);
// `dtype` or `torch_dtype`, at the top or in text_config.
std::string read_dtype(const Section& root);
// The id of the image placeholder, which must be one of the vocabulary.
int32_t read_image_token(const Section& root, int32_t fallback, int64_t vocab_size);

}  // namespace espalier
