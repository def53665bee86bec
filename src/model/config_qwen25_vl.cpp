// SPDX-License-Identifier: Apache-2.0
// Qwen2.5-VL: a vision transformer with windows and a patch merger, a Qwen2 decoder with M-RoPE.
#include <algorithm>
#include <numeric>

#include "model/config_section.h"

namespace espalier {

namespace {

using Json = nlohmann::json;

VisionConfig read_vision(const Section& root) {
  const Section s = root.section("vision_config");
  const std::string type = s.text("model_type", "qwen2_5_vl");
  if (type != "qwen2_5_vl" && type != "qwen2_5_vl_vision")
    throw Error(s.field("model_type") + ": qwen2_5_vl was expected, got \"" + type + "\"");
  VisionConfig v;
  v.has_class_token = false;
  v.hidden_size = s.integer("hidden_size", int64_t{3584}, 1, kLarge);
  v.intermediate_size = s.integer("intermediate_size", int64_t{3420}, 1, kLarge);
  v.num_layers = s.integer("depth", 32, 1, 1000);
  v.num_heads = s.integer("num_heads", 16, 1, 10000);
  v.patch_size = s.integer("patch_size", int64_t{14}, 1, 1024);
  v.temporal_patch_size = s.integer("temporal_patch_size", int64_t{2}, 1, 1024);
  v.merge_size = s.integer("spatial_merge_size", int64_t{2}, 1, 1024);
  v.window_size = s.integer("window_size", int64_t{112}, v.merge_size * v.patch_size, kLarge);
  v.channels = s.integer(s.has("in_chans") ? "in_chans" : "in_channels", v.channels, 3, 3);
  v.activation = read_activation(s, "hidden_act", "silu");
  if (v.activation != Activation::kSilu)
    throw Error(s.field("hidden_act") + ": silu was expected, got \"" + s.text("hidden_act", "") + "\"");
  if (v.hidden_size % v.num_heads != 0 || v.head_dim() % 4 != 0)
    throw Error(s.field("num_heads") + ": " + std::to_string(v.num_heads) + " heads of hidden_size " +
                std::to_string(v.hidden_size) + " are not a whole number of rows and columns wide (a multiple of 4)");
  v.full_attention_layers = {7, 15, 23, 31};
  if (s.has("fullatt_block_indexes")) {
    const Json& layers = s.at("fullatt_block_indexes");
    if (!layers.is_array() || !std::ranges::all_of(layers, [](const Json& l) { return l.is_number_integer(); }))
      throw Error(s.field("fullatt_block_indexes") + ": a list of layers was expected, got " + layers.dump());
    v.full_attention_layers = layers.get<std::vector<int>>();
  }
  return v;
}

// Plain RoPE frequencies, shared out between the three parts of a position id.
void read_mrope(const Section& s, DecoderConfig& d) {
  d.rope_theta = s.number("rope_theta", d.rope_theta, 0);
  d.mrope_section = {16, 24, 24};
  const char* key = s.has("rope_scaling") ? "rope_scaling" : "rope_parameters";
  const Section r = s.section(key);
  d.rope_theta = r.number("rope_theta", d.rope_theta, 0);
  const std::string kind = r.text("rope_type", r.text("type", "default"));
  if (kind != "default" && kind != "mrope")
    throw Error(r.field("rope_type") + ": default or mrope was expected, got \"" + kind + "\"");
  if (r.has("mrope_section")) {
    const Json& section = r.at("mrope_section");
    if (!section.is_array() || section.size() != 3 ||
        !std::ranges::all_of(section, [](const Json& part) { return part.is_number_integer() && part >= 0; }))
      throw Error(r.field("mrope_section") + ": three numbers of frequencies were expected, got " + section.dump());
    d.mrope_section = section.get<std::vector<int64_t>>();
  }
  if (std::reduce(d.mrope_section.begin(), d.mrope_section.end()) != d.head_dim / 2)
    throw Error(r.field("mrope_section") + ": " + Json(d.mrope_section).dump() + " does not add up to " +
                std::to_string(d.head_dim / 2) + " frequencies, half of a head");
}

// Published files have the decoder at the top level, newer saves in text_config; where both are there, the latter
// counts, as in Transformers.
DecoderConfig read_decoder(const Section& root) {
  const Section s = root.has("text_config") ? root.section("text_config") : root;
  DecoderConfig d;
  d.hidden_size = 8192;
  d.intermediate_size = 29568;
  d.num_layers = 80;
  d.num_heads = 64;
  d.num_kv_heads = 8;
  d.vocab_size = 152064;
  d.max_positions = 32768;
  d.rms_norm_eps = 1e-5;
  d.rope_theta = 1e6;
  d.qkv_bias = true;
  read_decoder_sizes(s, d);
  if (s.boolean("use_sliding_window", false) && s.has("sliding_window"))
    throw Error(s.field("use_sliding_window") + ": a sliding window is not supported with M-RoPE");
  read_mrope(s, d);
  d.tied_head = root.boolean("tie_word_embeddings", false) || s.boolean("tie_word_embeddings", false);
  return d;
}

}  // namespace

ModelConfig read_qwen25_vl(const Section& root) {
  ModelConfig config;
  config.family = Family::kQwen25Vl;
  config.vision = read_vision(root);
  config.decoder = read_decoder(root);
  const Section vision = root.section("vision_config");
  const auto out = vision.integer("out_hidden_size", int64_t{3584}, 1, kLarge);
  if (out != config.decoder.hidden_size)
    throw Error(vision.field("out_hidden_size") + ": " + std::to_string(out) + " is not the decoder's hidden_size " +
                std::to_string(config.decoder.hidden_size));
  config.vision_feature_layers = {-1};
  config.image_token_id = read_image_token(root, 151655, config.decoder.vocab_size);
  config.dtype = read_dtype(root);
  return config;
}

}  // namespace espalier
