// SPDX-License-Identifier: Apache-2.0
// What the parsers of config.json share: typed reading of one JSON object with errors that name file and field, and the
// parts that families have in common. For the parsers in src/families.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "base/error_text.h"
#include "base/json_fields.h"
#include "espalier/error.h"
#include "model/config.h"
#include "model/layers.h"

namespace espalier {

// One object of the file. Missing keys and nulls take the default. Holds references, as JsonFields does.
class Section {
 public:
  using Json = nlohmann::json;

  Section(const Json& json, const std::string& file) : fields_(json, file) {}
  Section(const Json& json, std::string&& file) = delete;

  bool has(const char* key) const { return fields_.has(key); }
  bool is_null(const char* key) const { return fields_.value().contains(key) && !has(key); }
  const Json& at(const char* key) const { return fields_.value().at(key); }
  std::string field(const char* key) const { return fields_.field(key); }
  [[noreturn]] void fail(const char* key, std::string_view expected) const { fields_.fail(key, expected); }

  Section section(const char* key) const {
    return Section(has(key) ? fields_.object_at(key) : fields_.without_fields(key));
  }

  template <typename Int>
  Int integer(const char* key, Int fallback, int64_t low, int64_t high) const {
    const std::optional<int64_t> value = fields_.integer(key, low, high);
    return value ? static_cast<Int>(*value) : fallback;
  }
  double number(const char* key, double fallback, double above) const {
    const double value = fields_.number(key).value_or(fallback);
    if (has(key) && !(value > above)) fields_.fail(key, text_of("a number above ", above));
    return value;
  }
  bool boolean(const char* key, bool fallback) const { return fields_.boolean(key).value_or(fallback); }
  std::string text(const char* key, const std::string& fallback) const {
    return fields_.string(key).value_or(fallback);
  }

 private:
  explicit Section(JsonFields fields) : fields_(std::move(fields)) {}

  JsonFields fields_;
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
