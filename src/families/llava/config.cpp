// SPDX-License-Identifier: Apache-2.0
#include "families/llava/config.h"

#include <algorithm>

#include "model/config_section.h"

namespace espalier {

namespace {

using Json = nlohmann::json;

ClipConfig read_vision(const Section& root) {
  ClipConfig v;
  if (!root.has("vision_config")) {  // LLaVA's own default: ViT-L/14 at 336 pixels
    v.hidden_size = 1024;
    v.intermediate_size = 4096;
    v.num_layers = 24;
    v.num_heads = 16;
    v.image_size = 336;
    v.patch_size = 14;
    return v;
  }
  const Section s = root.section("vision_config");
  const std::string type = s.text("model_type", "clip_vision_model");
  if (type != "clip_vision_model") s.fail("model_type", "clip_vision_model");
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

DecoderConfig read_decoder(const Section& root) {
  const Section s = root.section("text_config");
  const std::string type = s.text("model_type", "llama");
  DecoderConfig d;
  d.num_kv_heads = 0;
  if (type == "mistral") {
    d.intermediate_size = 14336;
    d.num_kv_heads = 8;
    d.max_positions = 4096 * 32;
    d.sliding_window = 4096;
  } else if (type != "llama") {
    s.fail("model_type", "llama or mistral");
  }
  read_decoder_sizes(s, d);
  if (type == "mistral")
    d.sliding_window = s.is_null("sliding_window") ? 0 : s.integer("sliding_window", d.sliding_window, 0, kLarge);
  for (const char* key : {"attention_bias", "mlp_bias"})
    if (s.boolean(key, false)) throw Error(s.field(key) + ": decoders with biases are not supported");
  read_rope(s, d);
  d.tied_head = s.boolean("tie_word_embeddings", false) || root.boolean("tie_word_embeddings", false);
  return d;
}

void read_feature_selection(const Section& root, LlavaConfig& config) {
  if (root.has("vision_feature_layer")) {
    const Json& layer = root.at("vision_feature_layer");
    config.vision_feature_layers.clear();
    for (const Json& entry : layer.is_array() ? layer : Json::array({layer})) {
      if (!entry.is_number_integer() || entry.get<int64_t>() != entry.get<int>())
        root.fail("vision_feature_layer", "layers of the tower");
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
  if (strategy != "default" && strategy != "full") root.fail("vision_feature_select_strategy", "default or full");
  config.keeps_class_token = strategy == "full";
}

}  // namespace

std::vector<int> LlavaConfig::feature_states() const {
  std::vector<int> states;
  for (const int layer : vision_feature_layers) states.push_back(layer < 0 ? vision.num_layers + 1 + layer : layer);
  return states;
}

int LlavaConfig::last_vision_layer() const {
  return std::ranges::max(feature_states());
}

int64_t LlavaConfig::feature_size() const {
  return vision.hidden_size * std::ssize(vision_feature_layers);
}

VisionFacts LlavaConfig::facts() const {
  return {.num_layers = vision.num_layers,
          .feature_layers = last_vision_layer(),
          .num_heads = vision.num_heads,
          .hidden_size = vision.hidden_size,
          .has_class_token = true,
          .crop_size = vision.image_size};
}

LlavaConfig read_llava_config(const Section& root) {
  LlavaConfig config;
  config.vision = read_vision(root);
  config.decoder = read_decoder(root);
  config.projector_activation = read_activation(root, "projector_hidden_act", "gelu");
  config.projector_bias = root.boolean("multimodal_projector_bias", true);
  read_feature_selection(root, config);
  config.image_token_id = read_image_token(root, 32000, config.decoder.vocab_size);
  config.dtype = read_dtype(root);
  return config;
}

}  // namespace espalier
