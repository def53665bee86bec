// SPDX-License-Identifier: Apache-2.0
#include "training/model_folder.h"

#include <torch/types.h>

#include <nlohmann/json.hpp>
#include <string>
#include <system_error>
#include <vector>

#include "espalier/error.h"
#include "io/output_file.h"
#include "io/safetensors.h"
#include "model/weights.h"
#include "synth/demo_tokenizer.h"

namespace espalier {

namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kHidden = 128, kImageSide = 56;

Json config_json() {
  const synth::DemoTokenizer tokenizer = synth::demo_tokenizer();
  const int64_t vocab = (tokenizer.size + 31) / 32 * 32;
  return {{"architectures", {"LlavaForConditionalGeneration"}},
          {"model_type", "llava"},
          {"ignore_index", -100},
          {"image_token_index", tokenizer.image},
          {"image_seq_length", 64},
          {"pad_token_id", tokenizer.padding},
          {"projector_hidden_act", "gelu"},
          {"text_config",
           {{"architectures", {"LlamaForCausalLM"}},
            {"model_type", "llama"},
            {"hidden_size", kHidden},
            {"intermediate_size", 352},
            {"num_hidden_layers", 8},
            {"num_attention_heads", 4},
            {"num_key_value_heads", 4},
            {"max_position_embeddings", 4096},
            {"rms_norm_eps", 1e-5},
            {"rope_theta", 10000.0},
            {"torch_dtype", "bfloat16"},
            {"vocab_size", vocab}}},
          {"tie_word_embeddings", false},
          {"torch_dtype", "bfloat16"},
          {"vision_config",
           {{"model_type", "clip_vision_model"},
            {"hidden_size", kHidden},
            {"image_size", kImageSide},
            {"intermediate_size", 512},
            {"num_attention_heads", 4},
            {"num_hidden_layers", 5},
            {"patch_size", 7},
            {"projection_dim", kHidden},
            {"vocab_size", 32000}}},
          {"vision_feature_layer", -2},
          {"vision_feature_select_strategy", "default"},
          {"vocab_size", vocab}};
}

Json preprocessor_json() {
  return {{"crop_size", {{"height", kImageSide}, {"width", kImageSide}}},
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
          {"size", {{"shortest_edge", kImageSide}}}};
}

void write_text(const std::filesystem::path& file, const std::string& text) {
  OutputFile out(file);
  out.write(text);
  out.commit();
}

void write_json(const std::filesystem::path& file, const Json& json) {
  write_text(file, json.dump(2) + "\n");
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

}  // namespace

void write_model_files(const std::filesystem::path& folder) {
  std::error_code failure;
  std::filesystem::create_directories(folder, failure);
  if (failure) throw Error(folder.string() + ": cannot make this folder: " + failure.message());
  const synth::DemoTokenizer tokenizer = synth::demo_tokenizer();
  for (const synth::FolderFile& file : tokenizer.files) write_text(folder / file.name, file.text);
  write_json(folder / "config.json", config_json());
  write_json(folder / "preprocessor_config.json", preprocessor_json());
  write_json(folder / "processor_config.json", {{"image_token", "<image>"},
                                                {"num_additional_image_tokens", 1},
                                                {"patch_size", 7},
                                                {"processor_class", "LlavaProcessor"},
                                                {"vision_feature_select_strategy", "default"}});
  write_json(folder / "generation_config.json", {{"bos_token_id", synth::DemoTokenizer::kBegin},
                                                 {"eos_token_id", synth::DemoTokenizer::kEnd},
                                                 {"pad_token_id", tokenizer.padding}});
}

ModelConfig demo_model_config() {
  return parse_config(config_json().dump(), "config.json");
}

void write_model_weights(const std::filesystem::path& folder, const ModelConfig& config, const Parameters& parameters) {
  std::vector<std::string> names;
  for (const NamedShape& n : weight_names(config)) names.push_back(n.name);
  // Published files hold the tower's last norm too.
  for (const char* part : {"weight", "bias"}) names.push_back(std::string("vision.post_layernorm.") + part);
  std::vector<at::Tensor> stored;
  std::vector<TensorToWrite> tensors;
  for (const std::string& name : names) {
    stored.push_back(parameters.at(name).to(torch::kBFloat16).contiguous());
    const at::Tensor& t = stored.back();
    tensors.push_back({published_name(name), Dtype::kBF16, t.sizes().vec(), t.const_data_ptr()});
  }
  write_safetensors(folder / "model.safetensors", tensors, {{"format", "pt"}});
}

}  // namespace espalier
