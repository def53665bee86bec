// SPDX-License-Identifier: Apache-2.0
#include "families/qwen_vl/config.h"

#include <algorithm>
#include <numeric>

#include "model/config_section.h"

namespace espalier {

namespace {

using Json = nlohmann::json;

// Plain RoPE frequencies, shared out between the three parts of a position id.
void read_mrope(const Section& s, DecoderConfig& d) {
  d.rope_theta = s.number("rope_theta", d.rope_theta, 0);
  d.mrope_section = {16, 24, 24};
  const char* key = s.has("rope_scaling") ? "rope_scaling" : "rope_parameters";
  const Section r = s.section(key);
  d.rope_theta = r.number("rope_theta", d.rope_theta, 0);
  const std::string kind = r.text("rope_type", r.text("type", "default"));
  if (kind != "default" && kind != "mrope") r.fail(r.has("rope_type") ? "rope_type" : "type", "default or mrope");
  if (r.has("mrope_section")) {
    const Json& section = r.at("mrope_section");
    if (!section.is_array() || section.size() != 3 ||
        !std::ranges::all_of(section, [](const Json& part) { return part.is_number_integer() && part >= 0; }))
      r.fail("mrope_section", "three numbers of frequencies");
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

VisionFacts QwenVlConfig::facts() const {
  return {.num_layers = vision.num_layers,
          .feature_layers = vision.num_layers,
          .num_heads = vision.num_heads,
          .hidden_size = vision.hidden_size,
          .patches_per_token = vision.patches_per_token()};
}

QwenVlConfig read_qwen_vl_config(const Section& root, const PatchVitConfig& vision, const char* projector_width) {
  QwenVlConfig config{.vision = vision, .decoder = read_decoder(root)};
  const Section s = root.section("vision_config");
  const auto out = s.integer(projector_width, int64_t{3584}, 1, kLarge);
  if (out != config.decoder.hidden_size)
    throw Error(s.field(projector_width) + ": " + std::to_string(out) + " is not the decoder's hidden_size " +
                std::to_string(config.decoder.hidden_size));
  config.image_token_id = read_image_token(root, 151655, config.decoder.vocab_size);
  config.dtype = read_dtype(root);
  return config;
}

void read_patch_sizes(const Section& s, PatchVitConfig& v) {
  v.num_layers = s.integer("depth", 32, 1, 1000);
  v.num_heads = s.integer("num_heads", 16, 1, 10000);
  v.patch_size = s.integer("patch_size", int64_t{14}, 1, 1024);
  v.temporal_patch_size = s.integer("temporal_patch_size", int64_t{2}, 1, 1024);
  v.merge_size = s.integer("spatial_merge_size", int64_t{2}, 1, 1024);
  v.channels = s.integer(s.has("in_chans") ? "in_chans" : "in_channels", v.channels, 3, 3);
}

void check_heads(const Section& s, const PatchVitConfig& v, const char* width) {
  if (v.hidden_size % v.num_heads != 0 || v.head_dim() % 4 != 0)
    throw Error(s.field("num_heads") + ": " + std::to_string(v.num_heads) + " heads of " + width + " " +
                std::to_string(v.hidden_size) + " are not a whole number of rows and columns wide (a multiple of 4)");
}

}  // namespace espalier
