// SPDX-License-Identifier: Apache-2.0
// What a checkpoint's config.json says, with the class defaults that published files leave out. Plain data: every
// variant of a family is a field here and not a branch elsewhere.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace espalier {

enum class Family : uint8_t { kLlava, kLlavaNext, kQwen25Vl };
enum class Activation : uint8_t { kQuickGelu, kGelu, kGeluTanh, kRelu, kSilu };

struct VisionConfig {  // CLIP ViT, or Qwen2.5-VL's
  int64_t hidden_size = 768;
  int64_t intermediate_size = 3072;
  int num_layers = 12;
  int num_heads = 12;
  int64_t image_size = 224;
  int64_t patch_size = 32;
  int64_t channels = 3;
  Activation activation = Activation::kQuickGelu;
  double layer_norm_eps = 1e-5;
  bool has_class_token = true;  // row 0 of each crop
  // Qwen2.5-VL: pictures have their own sizes, and a cell of merge_size x merge_size patches is one image token.
  int64_t merge_size = 1;
  int64_t temporal_patch_size = 1;
  int64_t window_size = 0;                      // side of an attention window in pixels
  std::vector<int> full_attention_layers = {};  // which see the whole picture

  int64_t grid() const { return image_size / patch_size; }
  int64_t num_patches() const { return grid() * grid(); }
  int64_t head_dim() const { return hidden_size / num_heads; }
};

// How RoPE's frequencies are stretched. kDynamic equals kNone up to max_positions, which is as far as Espalier goes.
struct RopeScaling {
  enum class Kind : uint8_t { kNone, kLinear, kDynamic, kLlama3 };
  Kind kind = Kind::kNone;
  double factor = 1.0;
  double low_freq_factor = 1.0;           // kLlama3
  double high_freq_factor = 4.0;          // kLlama3
  int64_t original_max_positions = 8192;  // kLlama3
};

struct DecoderConfig {  // Llama, Mistral, Qwen2
  int64_t hidden_size = 4096;
  int64_t intermediate_size = 11008;
  int num_layers = 32;
  int num_heads = 32;
  int num_kv_heads = 32;
  int64_t head_dim = 128;
  int64_t vocab_size = 32000;
  int64_t max_positions = 2048;
  int64_t sliding_window = 0;  // keys a query sees, itself included; 0: all
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000.0;
  RopeScaling rope_scaling = {};
  // M-RoPE: how many of the head_dim / 2 frequencies turn with time, height and width; empty: plain position ids.
  std::vector<int64_t> mrope_section = {};
  bool qkv_bias = false;
  bool tied_head = false;
};

struct Pinpoint {  // pixels that the tiles of an any-resolution picture can fill together
  int64_t height = 0;
  int64_t width = 0;
  bool operator==(const Pinpoint&) const = default;
};

struct ModelConfig {
  Family family = Family::kLlava;
  VisionConfig vision;
  DecoderConfig decoder;
  Activation projector_activation = Activation::kGelu;
  bool projector_bias = true;
  std::vector<int> vision_feature_layers = {-2};  // as written: -2 is the output of the last layer but one
  bool keeps_class_token = false;                 // vision_feature_select_strategy "full"
  std::vector<Pinpoint> grid_pinpoints;           // LLaVA-NeXT
  int32_t image_token_id = 32000;
  std::string dtype = "float32";  // of the stored weights, as the file says

  // hidden_states index (0 is the input of layer 0) of feature layer i; the 0-based layer whose output it is, is one
  // less.
  int hidden_state_of_feature(size_t i) const;
  int last_vision_layer() const;  // layers that have to run for the features
};

// Parses config.json; `name` stands in errors. Throws Error on an unknown architecture, a value out of range, or a key
// of the wrong type.
ModelConfig parse_config(std::string_view json, const std::string& name);

}  // namespace espalier
