// SPDX-License-Identifier: Apache-2.0
#include "training/model_folder.h"

#include <torch/types.h>

#include <string>
#include <system_error>
#include <vector>

#include "base/json_file.h"
#include "base/output_file.h"
#include "base/safetensors.h"
#include "espalier/error.h"
#include "families/families.h"
#include "families/llava/llava.h"
#include "model/config_section.h"

namespace espalier {

namespace {

constexpr const char* kDtype = "bfloat16";

}  // namespace

void write_model_files(const std::filesystem::path& folder, const synth::LlavaSize& size) {
  std::error_code failure;
  std::filesystem::create_directories(folder, failure);
  if (failure) throw Error(folder.string() + ": cannot make this folder: " + failure.message());
  for (const synth::FolderFile& file : synth::llava_files(size, kDtype)) {
    OutputFile out(folder / file.name);
    out.write(file.text);
    out.commit();
  }
}

LlavaConfig model_config(const synth::LlavaSize& size) {
  const std::string name = "config.json";
  const nlohmann::json json = parse_json(synth::llava_config(size, kDtype), name);
  return read_llava_config(Section(json, name));
}

LlavaConfig demo_model_config() {
  return model_config(synth::kDemoSize);
}

void write_model_weights(const std::filesystem::path& folder, const LlavaConfig& config, const Parameters& parameters) {
  std::vector<std::string> names;
  for (const NamedShape& n : weight_names(describe(config))) names.push_back(n.name);
  // Published files hold the tower's last norm too.
  for (const char* part : {"weight", "bias"}) names.push_back(std::string("vision.post_layernorm.") + part);
  std::vector<at::Tensor> stored;
  std::vector<TensorToWrite> tensors;
  for (const std::string& name : names) {
    stored.push_back(parameters.at(name).to(torch::kBFloat16).contiguous());
    const at::Tensor& t = stored.back();
    tensors.push_back({synth::published_name(name), Dtype::kBF16, t.sizes().vec(), t.const_data_ptr()});
  }
  write_safetensors(folder / "model.safetensors", tensors, {{"format", "pt"}});
}

}  // namespace espalier
