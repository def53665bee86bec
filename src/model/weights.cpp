// SPDX-License-Identifier: Apache-2.0
#include "model/weights.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>

#include <algorithm>

namespace espalier {

namespace {

Linear bind_linear(const WeightSource& source, const std::string& name, int64_t out, int64_t in, bool has_bias = true) {
  return {source(name + ".weight", {out, in}), has_bias ? source(name + ".bias", {out}) : at::Tensor()};
}

LayerNorm bind_norm(const WeightSource& source, const std::string& name, int64_t d) {
  return {source(name + ".weight", {d}), source(name + ".bias", {d})};
}

VisionWeights bind_vision(const VisionConfig& c, const WeightSource& source) {
  const int64_t d = c.hidden_size;
  VisionWeights w;
  w.class_embedding = source("vision.embeddings.class_embedding", {d});
  w.patch_embedding = source("vision.embeddings.patch_embedding.weight", {d, c.channels, c.patch_size, c.patch_size});
  w.position_embedding = source("vision.embeddings.position_embedding.weight", {1 + c.num_patches(), d});
  w.pre_norm = bind_norm(source, "vision.pre_layrnorm", d);
  for (int i = 0; i < c.num_layers; ++i) {
    const std::string layer = "vision.encoder.layers." + std::to_string(i) + ".";
    VisionLayerWeights l;
    l.norm1 = bind_norm(source, layer + "layer_norm1", d);
    l.q = bind_linear(source, layer + "self_attn.q_proj", d, d);
    l.k = bind_linear(source, layer + "self_attn.k_proj", d, d);
    l.v = bind_linear(source, layer + "self_attn.v_proj", d, d);
    l.out = bind_linear(source, layer + "self_attn.out_proj", d, d);
    l.norm2 = bind_norm(source, layer + "layer_norm2", d);
    l.fc1 = bind_linear(source, layer + "mlp.fc1", c.intermediate_size, d);
    l.fc2 = bind_linear(source, layer + "mlp.fc2", d, c.intermediate_size);
    w.layers.push_back(std::move(l));
  }
  return w;
}

QwenVisionWeights bind_qwen_vision(const VisionConfig& c, const WeightSource& source) {
  const int64_t d = c.hidden_size, f = c.intermediate_size;
  QwenVisionWeights w;
  w.patch_embedding =
      source("vision.patch_embed.proj.weight", {d, c.channels, c.temporal_patch_size, c.patch_size, c.patch_size});
  if (w.patch_embedding.defined()) w.patch_embedding = w.patch_embedding.flatten(1);
  for (int i = 0; i < c.num_layers; ++i) {
    const std::string layer = "vision.blocks." + std::to_string(i) + ".";
    w.layers.push_back({.norm1 = source(layer + "norm1.weight", {d}),
                        .norm2 = source(layer + "norm2.weight", {d}),
                        .qkv = bind_linear(source, layer + "attn.qkv", 3 * d, d),
                        .out = bind_linear(source, layer + "attn.proj", d, d),
                        .gate = bind_linear(source, layer + "mlp.gate_proj", f, d),
                        .up = bind_linear(source, layer + "mlp.up_proj", f, d),
                        .down = bind_linear(source, layer + "mlp.down_proj", d, f)});
  }
  w.merger_norm = source("vision.merger.ln_q.weight", {d});
  return w;
}

DecoderWeights bind_decoder(const DecoderConfig& c, const WeightSource& source) {
  const int64_t d = c.hidden_size, q = c.num_heads * c.head_dim, kv = c.num_kv_heads * c.head_dim,
                f = c.intermediate_size;
  DecoderWeights w;
  w.embed_tokens = source("decoder.embed_tokens.weight", {c.vocab_size, d});
  for (int i = 0; i < c.num_layers; ++i) {
    const std::string layer = "decoder.layers." + std::to_string(i) + ".";
    const auto bias = [&](const char* name, int64_t size) {
      return c.qkv_bias ? source(layer + "self_attn." + name + ".bias", {size}) : at::Tensor();
    };
    w.layers.push_back({.norm1 = source(layer + "input_layernorm.weight", {d}),
                        .norm2 = source(layer + "post_attention_layernorm.weight", {d}),
                        .q = source(layer + "self_attn.q_proj.weight", {q, d}),
                        .k = source(layer + "self_attn.k_proj.weight", {kv, d}),
                        .v = source(layer + "self_attn.v_proj.weight", {kv, d}),
                        .o = source(layer + "self_attn.o_proj.weight", {d, q}),
                        .gate = source(layer + "mlp.gate_proj.weight", {f, d}),
                        .up = source(layer + "mlp.up_proj.weight", {f, d}),
                        .down = source(layer + "mlp.down_proj.weight", {d, f}),
                        .q_bias = bias("q_proj", q),
                        .k_bias = bias("k_proj", kv),
                        .v_bias = bias("v_proj", kv)});
  }
  w.norm = source("decoder.norm.weight", {d});
  w.head = c.tied_head ? w.embed_tokens : source("lm_head.weight", {c.vocab_size, d});
  return w;
}

}  // namespace

ModelWeights bind_weights(const ModelConfig& config, const WeightSource& source) {
  const int64_t d = config.decoder.hidden_size;
  ModelWeights w;
  if (config.family == Family::kQwen25Vl) {
    const int64_t cell = config.vision.merge_size * config.vision.merge_size * config.vision.hidden_size;
    w.qwen_vision = bind_qwen_vision(config.vision, source);
    w.projector.linear1 = bind_linear(source, "vision.merger.mlp.0", cell, cell);
    w.projector.linear2 = bind_linear(source, "vision.merger.mlp.2", d, cell);
  } else {
    const int64_t in = config.vision.hidden_size * static_cast<int64_t>(config.vision_feature_layers.size());
    w.vision = bind_vision(config.vision, source);
    w.projector.linear1 = bind_linear(source, "projector.linear_1", d, in, config.projector_bias);
    w.projector.linear2 = bind_linear(source, "projector.linear_2", d, d, config.projector_bias);
  }
  if (config.family == Family::kLlavaNext) w.image_newline = source("image_newline", {config.decoder.hidden_size});
  w.decoder = bind_decoder(config.decoder, source);
  return w;
}

namespace {

// Row by row, in pieces: the float32 copy of a head may be larger than the rest of the model.
void quantise(at::Tensor& weight, at::Tensor& scale) {
  constexpr int64_t kElementsAtOnce = int64_t{1} << 24;
  const int64_t step = std::max<int64_t>(1, kElementsAtOnce / std::max<int64_t>(1, weight.size(1)));
  std::vector<at::Tensor> whole, scales;
  for (int64_t o = 0; o < weight.size(0); o += step) {
    const at::Tensor rows = weight.slice(0, o, o + step).to(at::kFloat);
    const at::Tensor of_rows = rows.abs().amax(1) / 127.0;
    scales.push_back(of_rows);
    // A row of zeros has scale 0 and stays zeros.
    whole.push_back((rows / of_rows.clamp_min(1e-30).unsqueeze(1)).round().clamp(-127, 127).to(at::kChar));
  }
  weight = at::cat(whole);
  scale = at::cat(scales);
}

}  // namespace

void quantise_to_int8(DecoderWeights& weights) {
  for (DecoderLayerWeights& layer : weights.layers) {
    quantise(layer.q, layer.scales.q);
    quantise(layer.k, layer.scales.k);
    quantise(layer.v, layer.scales.v);
    quantise(layer.o, layer.scales.o);
    quantise(layer.gate, layer.scales.gate);
    quantise(layer.up, layer.scales.up);
    quantise(layer.down, layer.scales.down);
  }
  quantise(weights.head, weights.head_scale);  // a tied embedding keeps its own tensor
}

std::vector<NamedShape> weight_names(const ModelConfig& config) {
  std::vector<NamedShape> names;
  bind_weights(config, [&](const std::string& name, at::IntArrayRef shape) {
    names.push_back({name, shape.vec()});
    return at::Tensor();
  });
  return names;
}

}  // namespace espalier
