// SPDX-License-Identifier: Apache-2.0
#include "synth/llava_files.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string_view>

namespace espalier::synth {

namespace {

using Json = nlohmann::ordered_json;

std::string text_of(const Json& json) {
  return json.dump(2) + "\n";
}

Json config_json(const LlavaSize& s, const std::string& dtype, const DemoTokenizer& tokenizer) {
  const int64_t vocab = std::max<int64_t>(s.vocab, (tokenizer.size + 31) / 32 * 32);
  const int64_t grid = s.image / s.patch;
  return {{"architectures", {"LlavaForConditionalGeneration"}},
          {"model_type", "llava"},
          {"ignore_index", -100},
          {"image_token_index", tokenizer.image},
          {"image_seq_length", grid * grid},
          {"pad_token_id", tokenizer.padding},
          {"projector_hidden_act", "gelu"},
          {"text_config",
           {{"architectures", {"LlamaForCausalLM"}},
            {"model_type", "llama"},
            {"hidden_size", s.hidden},
            {"intermediate_size", s.intermediate},
            {"num_hidden_layers", s.layers},
            {"num_attention_heads", s.heads},
            {"num_key_value_heads", s.heads},
            {"max_position_embeddings", s.max_positions},
            {"rms_norm_eps", 1e-5},
            {"rope_theta", 10000.0},
            {"torch_dtype", dtype},
            {"vocab_size", vocab}}},
          {"tie_word_embeddings", false},
          {"torch_dtype", dtype},
          {"vision_config",
           {{"model_type", "clip_vision_model"},
            {"hidden_size", s.vision_hidden},
            {"image_size", s.image},
            {"intermediate_size", s.vision_intermediate},
            {"num_attention_heads", s.vision_heads},
            {"num_hidden_layers", s.vision_layers},
            {"patch_size", s.patch},
            {"projection_dim", s.vision_hidden},
            {"vocab_size", 32000}}},
          {"vision_feature_layer", -2},
          {"vision_feature_select_strategy", "default"},
          {"vocab_size", vocab}};
}

Json preprocessor_json(int64_t side) {
  return {{"crop_size", {{"height", side}, {"width", side}}},
          {"do_center_crop", true},
          {"do_convert_rgb", true},
          {"do_normalize", true},
          {"do_rescale", true},
          {"do_resize", true},
          {"image_mean", {0.48145466, 0.4578275, 0.40821073}},
          {"image_processor_type", "CLIPImageProcessor"},
          {"image_std", {0.26862954, 0.26130258, 0.27577711}},
          {"processor_class", "LlavaProcessor"},
          {"resample", 3},
          {"rescale_factor", 0.00392156862745098},
          {"size", {{"shortest_edge", side}}}};
}

}  // namespace

std::vector<FolderFile> llava_files(const LlavaSize& size, const std::string& dtype) {
  const DemoTokenizer tokenizer = demo_tokenizer(size.vocab, size.words);
  std::vector<FolderFile> files = tokenizer.files;
  files.push_back({"config.json", text_of(config_json(size, dtype, tokenizer))});
  files.push_back({"preprocessor_config.json", text_of(preprocessor_json(size.image))});
  files.push_back({"processor_config.json", text_of({{"image_token", "<image>"},
                                                     {"num_additional_image_tokens", 1},
                                                     {"patch_size", size.patch},
                                                     {"processor_class", "LlavaProcessor"},
                                                     {"vision_feature_select_strategy", "default"}})});
  files.push_back({"generation_config.json", text_of({{"bos_token_id", DemoTokenizer::kBegin},
                                                      {"eos_token_id", DemoTokenizer::kEnd},
                                                      {"pad_token_id", tokenizer.padding}})});
  return files;
}

std::string llava_config(const LlavaSize& size, const std::string& dtype) {
  return text_of(config_json(size, dtype, demo_tokenizer(size.vocab, size.words)));
}

std::string published_name(const std::string& canonical) {
  const auto swap = [&](std::string_view from, std::string_view to) {
    return std::string(to) + canonical.substr(from.size());
  };
  if (canonical.starts_with("decoder.")) return swap("decoder.", "language_model.model.");
  if (canonical.starts_with("vision.")) return swap("vision.", "vision_tower.vision_model.");
  if (canonical.starts_with("projector.")) return swap("projector.", "multi_modal_projector.");
  return "language_model." + canonical;  // lm_head
}

}  // namespace espalier::synth
