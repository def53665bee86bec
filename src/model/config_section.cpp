// SPDX-License-Identifier: Apache-2.0
#include "model/config_section.h"

#include <array>
#include <utility>

namespace espalier {

Activation read_activation(const Section& section, const char* key, const std::string& fallback) {
  static constexpr std::array<std::pair<std::string_view, Activation>, 6> kNames = {
      {{"quick_gelu", Activation::kQuickGelu},
       {"gelu", Activation::kGelu},
       {"gelu_pytorch_tanh", Activation::kGeluTanh},
       {"gelu_new", Activation::kGeluTanh},
       {"relu", Activation::kRelu},
       {"silu", Activation::kSilu}}};
  const std::string name = section.text(key, fallback);
  for (const auto& [known, activation] : kNames)
    if (known == name) return activation;
  throw Error(section.field(key) + ": unknown activation " + in_quotes(name));
}

void read_rope(const Section& s, DecoderConfig& d) {
  d.rope_theta = s.number("rope_theta", d.rope_theta, 0);
  const char* key = s.has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  if (!s.has(key)) return;
  const Section r = s.section(key);
  d.rope_theta = r.number("rope_theta", d.rope_theta, 0);
  const std::string kind = r.text("rope_type", r.text("type", "default"));
  RopeScaling& scaling = d.rope_scaling;
  if (kind == "default") return;
  scaling.factor = r.number("factor", 1.0, 0);
  if (kind == "linear") {
    scaling.kind = RopeScaling::Kind::kLinear;
  } else if (kind == "dynamic") {
    scaling.kind = RopeScaling::Kind::kDynamic;
  } else if (kind == "llama3") {
    scaling.kind = RopeScaling::Kind::kLlama3;
    scaling.low_freq_factor = r.number("low_freq_factor", scaling.low_freq_factor, 0);
    scaling.high_freq_factor = r.number("high_freq_factor", scaling.high_freq_factor, 0);
    scaling.original_max_positions =
        r.integer("original_max_position_embeddings", scaling.original_max_positions, 1, kLarge);
    if (!(scaling.high_freq_factor > scaling.low_freq_factor))
      r.fail("high_freq_factor", "a number above low_freq_factor");
  } else {
    r.fail(r.has("rope_type") ? "rope_type" : "type", "default, linear, dynamic or llama3");
  }
}

void read_decoder_sizes(const Section& s, DecoderConfig& d) {
  d.hidden_size = s.integer("hidden_size", d.hidden_size, 1, kLarge);
  d.intermediate_size = s.integer("intermediate_size", d.intermediate_size, 1, kLarge);
  d.num_layers = s.integer("num_hidden_layers", d.num_layers, 1, 1000);
  d.num_heads = s.integer("num_attention_heads", d.num_heads, 1, 10000);
  const bool kv_follow_heads = d.num_kv_heads == 0 || s.is_null("num_key_value_heads");
  d.num_kv_heads = s.integer("num_key_value_heads", kv_follow_heads ? d.num_heads : d.num_kv_heads, 1, 10000);
  if (!s.has("head_dim") && d.hidden_size % d.num_heads != 0)
    throw Error(s.field("num_attention_heads") + ": " + std::to_string(d.num_heads) + " does not divide hidden_size " +
                std::to_string(d.hidden_size));
  d.head_dim = s.integer("head_dim", d.hidden_size / d.num_heads, 2, 4096);
  if (d.head_dim % 2 != 0) throw Error(text_of(s.field("head_dim"), ": expected an even number, got ", d.head_dim));
  if (d.num_heads % d.num_kv_heads != 0)
    throw Error(s.field("num_key_value_heads") + ": " + std::to_string(d.num_kv_heads) +
                " does not divide num_attention_heads " + std::to_string(d.num_heads));
  d.vocab_size = s.integer("vocab_size", d.vocab_size, 1, kLarge);
  d.max_positions = s.integer("max_position_embeddings", d.max_positions, 1, kLarge);
  d.rms_norm_eps = s.number("rms_norm_eps", d.rms_norm_eps, 0);
  if (const std::string act = s.text("hidden_act", "silu"); act != "silu") s.fail("hidden_act", "silu");
}

std::string read_dtype(const Section& root) {
  const std::string dtype = root.text("dtype", root.text("torch_dtype", ""));
  if (!dtype.empty()) return dtype;
  const Section text = root.section("text_config");
  return text.text("dtype", text.text("torch_dtype", "float32"));
}

int32_t read_image_token(const Section& root, int32_t fallback, int64_t vocab_size) {
  const char* key = root.has("image_token_index") ? "image_token_index" : "image_token_id";
  const auto id = root.integer<int32_t>(key, fallback, 0, vocab_size - 1);
  if (id >= vocab_size)
    throw Error(root.field(key) + ": its default, " + std::to_string(fallback) + ", is not among the " +
                std::to_string(vocab_size) + " tokens of the vocabulary");
  return id;
}

}  // namespace espalier
