// SPDX-License-Identifier: Apache-2.0
#include "model/config.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <utility>

#include "espalier/error.h"

namespace espalier {

namespace {

using Json = nlohmann::json;

// One object of the file, with its place in it for messages. Missing keys and nulls take the default.
class Section {
 public:
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

constexpr int64_t kLarge = int64_t{1} << 40;

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
  throw Error(section.field(key) + ": unknown activation \"" + name + "\"");
}

VisionConfig read_vision(const Section& root) {
  VisionConfig v;
  if (!root.has("vision_config")) {  // LLaVA's own default: ViT-L/14 at 336 pixels
    v = {.hidden_size = 1024,
         .intermediate_size = 4096,
         .num_layers = 24,
         .num_heads = 16,
         .image_size = 336,
         .patch_size = 14};
    return v;
  }
  const Section s = root.section("vision_config");
  const std::string type = s.text("model_type", "clip_vision_model");
  if (type != "clip_vision_model")
    throw Error(s.field("model_type") + ": clip_vision_model was expected, got \"" + type + "\"");
  v.hidden_size = s.integer("hidden_size", v.hidden_size, 1, kLarge);
  v.intermediate_size = s.integer("intermediate_size", v.intermediate_size, 1, kLarge);
  v.num_layers = s.integer("num_hidden_layers", v.num_layers, 1, 1000);
  v.num_heads = s.integer("num_attention_heads", v.num_heads, 1, 10000);
  v.image_size = s.integer("image_size", v.image_size, 1, 100000);
  v.patch_size = s.integer("patch_size", v.patch_size, 1, 100000);
  v.channels = s.integer("num_channels", v.channels, 3, 3);
  v.activation = read_activation(s, "hidden_act", "quick_gelu");
  v.layer_norm_eps = s.number("layer_norm_eps", v.layer_norm_eps, 0);
  if (v.hidden_size % v.num_heads != 0)
    throw Error(s.field("num_attention_heads") + ": " + std::to_string(v.num_heads) + " does not divide hidden_size " +
                std::to_string(v.hidden_size));
  if (v.patch_size > v.image_size)
    throw Error(s.field("patch_size") + ": " + std::to_string(v.patch_size) + " is larger than image_size " +
                std::to_string(v.image_size));
  return v;
}

// `rope_scaling` of published files, `rope_parameters` of newer saves.
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
      throw Error(r.field("high_freq_factor") + ": a number above low_freq_factor was expected, got " +
                  std::to_string(scaling.high_freq_factor) + " and " + std::to_string(scaling.low_freq_factor));
  } else {
    throw Error(r.field("rope_type") + ": default, linear, dynamic or llama3 was expected, got \"" + kind + "\"");
  }
}

DecoderConfig read_decoder(const Section& root) {
  const Section s = root.section("text_config");
  const std::string type = s.text("model_type", "llama");
  DecoderConfig d;
  if (type == "mistral") {
    d.intermediate_size = 14336;
    d.num_kv_heads = 8;
    d.max_positions = 4096 * 32;
    d.sliding_window = 4096;
  } else if (type != "llama") {
    throw Error(s.field("model_type") + ": llama or mistral was expected, got \"" + type + "\"");
  }
  d.hidden_size = s.integer("hidden_size", d.hidden_size, 1, kLarge);
  d.intermediate_size = s.integer("intermediate_size", d.intermediate_size, 1, kLarge);
  d.num_layers = s.integer("num_hidden_layers", d.num_layers, 1, 1000);
  d.num_heads = s.integer("num_attention_heads", d.num_heads, 1, 10000);
  const bool kv_follow_heads = type == "llama" || s.is_null("num_key_value_heads");
  d.num_kv_heads = s.integer("num_key_value_heads", kv_follow_heads ? d.num_heads : d.num_kv_heads, 1, 10000);
  if (!s.has("head_dim") && d.hidden_size % d.num_heads != 0)
    throw Error(s.field("num_attention_heads") + ": " + std::to_string(d.num_heads) + " does not divide hidden_size " +
                std::to_string(d.hidden_size));
  d.head_dim = s.integer("head_dim", d.hidden_size / d.num_heads, 2, 4096);
  if (d.head_dim % 2 != 0)
    throw Error(s.field("head_dim") + ": an even number was expected, got " + std::to_string(d.head_dim));
  if (d.num_heads % d.num_kv_heads != 0)
    throw Error(s.field("num_key_value_heads") + ": " + std::to_string(d.num_kv_heads) +
                " does not divide num_attention_heads " + std::to_string(d.num_heads));
  d.vocab_size = s.integer("vocab_size", d.vocab_size, 1, kLarge);
  d.max_positions = s.integer("max_position_embeddings", d.max_positions, 1, kLarge);
  if (type == "mistral")
    d.sliding_window = s.is_null("sliding_window") ? 0 : s.integer("sliding_window", d.sliding_window, 0, kLarge);
  d.rms_norm_eps = s.number("rms_norm_eps", d.rms_norm_eps, 0);
  if (const std::string act = s.text("hidden_act", "silu"); act != "silu")
    throw Error(s.field("hidden_act") + ": silu was expected, got \"" + act + "\"");
  for (const char* key : {"attention_bias", "mlp_bias"})
    if (s.boolean(key, false)) throw Error(s.field(key) + ": decoders with biases are not supported");
  read_rope(s, d);
  d.tied_head = s.boolean("tie_word_embeddings", false) || root.boolean("tie_word_embeddings", false);
  return d;
}

void read_feature_selection(const Section& root, ModelConfig& config) {
  if (root.has("vision_feature_layer")) {
    const Json& layer = root.at("vision_feature_layer");
    config.vision_feature_layers.clear();
    for (const Json& entry : layer.is_array() ? layer : Json::array({layer})) {
      if (!entry.is_number_integer() || entry.get<int64_t>() != entry.get<int>())
        throw Error(root.field("vision_feature_layer") + ": layers of the tower were expected, got " + layer.dump());
      config.vision_feature_layers.push_back(entry.get<int>());
    }
    if (config.vision_feature_layers.empty()) throw Error(root.field("vision_feature_layer") + ": the list is empty");
  }
  const int states = config.vision.num_layers + 1;
  for (const int layer : config.vision_feature_layers)
    if (layer < -states || layer >= states)
      throw Error(root.field("vision_feature_layer") + ": " + std::to_string(layer) + " is not a state of a tower of " +
                  std::to_string(config.vision.num_layers) + " layers");
  const std::string strategy = root.text("vision_feature_select_strategy", "default");
  if (strategy != "default" && strategy != "full")
    throw Error(root.field("vision_feature_select_strategy") + ": default or full was expected, got \"" + strategy +
                "\"");
  config.keeps_class_token = strategy == "full";
}

}  // namespace

int ModelConfig::hidden_state_of_feature(size_t i) const {
  const int layer = vision_feature_layers[i];
  return layer < 0 ? vision.num_layers + 1 + layer : layer;
}

int ModelConfig::last_vision_layer() const {
  int last = 0;
  for (size_t i = 0; i < vision_feature_layers.size(); ++i) last = std::max(last, hidden_state_of_feature(i));
  return last;
}

ModelConfig parse_config(std::string_view text, const std::string& name) {
  Json json;
  try {
    json = Json::parse(text);
  } catch (const Json::parse_error& e) {
    throw Error(name + ": not JSON (byte " + std::to_string(e.byte) + ")");
  }
  const Section root(json, name);
  ModelConfig config;
  const std::string type = root.text("model_type", "(none)");
  if (type != "llava") throw Error(root.field("model_type") + ": unknown architecture \"" + type + "\" (known: llava)");
  config.family = Family::kLlava;
  config.vision = read_vision(root);
  config.decoder = read_decoder(root);
  config.projector_activation = read_activation(root, "projector_hidden_act", "gelu");
  config.projector_bias = root.boolean("multimodal_projector_bias", true);
  read_feature_selection(root, config);
  const char* image_token = root.has("image_token_index") ? "image_token_index" : "image_token_id";
  config.image_token_id = root.integer<int32_t>(image_token, 32000, 0, config.decoder.vocab_size - 1);
  if (config.image_token_id >= config.decoder.vocab_size)
    throw Error(root.field(image_token) + ": its default, 32000, is not among the " +
                std::to_string(config.decoder.vocab_size) + " tokens of the vocabulary");
  config.dtype = root.text("dtype", root.text("torch_dtype", ""));
  if (config.dtype.empty()) {
    const Section text_section = root.section("text_config");
    config.dtype = text_section.text("dtype", text_section.text("torch_dtype", "float32"));
  }
  return config;
}

}  // namespace espalier
