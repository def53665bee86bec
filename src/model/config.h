// SPDX-License-Identifier: Apache-2.0
// What a checkpoint's config.json says of its decoder, with the class defaults that published files leave out. Plain
// data: every variant of a decoder is a field here and not a branch elsewhere.
#pragma once

#include <cstdint>
#include <vector>

namespace espalier {

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

}  // namespace espalier
