// SPDX-License-Identifier: Apache-2.0
#include "runtime/loaded_model.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <cstring>

#include "base/json_file.h"
#include "espalier/error.h"
#include "model/checkpoint.h"

namespace espalier {

namespace {

at::ScalarType scalar_type(Dtype dtype, const std::string& name) {
  switch (dtype) {
    case Dtype::kF32:
      return at::kFloat;
    case Dtype::kF16:
      return at::kHalf;
    case Dtype::kBF16:
      return at::kBFloat16;
    default:
      throw Error(name + ": weights are F32, F16 or BF16, got " + std::string(name_of(dtype)));
  }
}

std::string shape_text(at::IntArrayRef shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

// The tensor over the mapped file itself. The map is read-only: nothing may write to a weight.
at::Tensor over_map(const TensorView& view, at::ScalarType dtype) {
  const auto options = at::TensorOptions().dtype(dtype);
  const auto address = reinterpret_cast<uintptr_t>(view.bytes.data());
  if (address % static_cast<uintptr_t>(size_of(view.dtype)) !=
      0) {  // the format allows unaligned tensors, the processor may not
    at::Tensor copy = at::empty(view.shape, options);
    std::memcpy(copy.data_ptr(), view.bytes.data(), view.bytes.size());
    return copy;
  }
  auto* data = const_cast<std::byte*>(view.bytes.data());
  return at::from_blob(
      data, view.shape, [owner = view.owner](void*) {}, options);
}

at::ScalarType compute_dtype(const ModelConfig& config, const EngineOptions& options, const std::string& file) {
  if (options.dtype) {
    switch (*options.dtype) {
      case ComputeDtype::kFloat32:
        return at::kFloat;
      case ComputeDtype::kBFloat16:
        return at::kBFloat16;
      case ComputeDtype::kFloat16:
        return at::kHalf;
    }
  }
  if (config.dtype == "float32") return at::kFloat;
  if (config.dtype == "bfloat16") return at::kBFloat16;
  if (config.dtype == "float16") return at::kHalf;
  throw Error(file + ": torch_dtype: float32, bfloat16 or float16 was expected, got \"" + config.dtype + "\"");
}

at::Device compute_device(DeviceKind kind) {
  if (kind == DeviceKind::kCpu) return at::kCPU;
  if (!at::hasCUDA()) throw Error("--device cuda: this build or this machine has no CUDA device");
  return at::Device(at::kCUDA, 0);
}

ModelWeights load_weights(const ModelConfig& config, const std::filesystem::path& folder, at::ScalarType dtype,
                          at::Device device, const Progress& on_progress) {
  const Checkpoint checkpoint = Checkpoint::open(folder);
  const auto total = static_cast<int64_t>(weight_names(config).size());
  int64_t done = 0;
  return bind_weights(config, [&](const std::string& name, at::IntArrayRef shape) {
    const TensorView* view = checkpoint.find(name);
    if (!view) throw Error(folder.string() + ": the weights lack " + name);
    if (!std::ranges::equal(view->shape, shape))
      throw Error(folder.string() + ": " + name + ": config.json asks for shape " + shape_text(shape) +
                  ", the file has " + shape_text(view->shape));
    const at::Tensor weight =
        over_map(*view, scalar_type(view->dtype, folder.string() + ": " + name)).to(device, dtype);
    if (on_progress) on_progress("load", ++done, total);
    return weight;
  });
}

// Pictures are cut by the processor's file and put together by the model's: both must mean the same canvases.
void check_pinpoints(const LoadedModel& m) {
  std::vector<ImageProcessor::Size> expected;
  for (const auto& [height, width] : m.config.grid_pinpoints)
    expected.push_back({static_cast<int>(height), static_cast<int>(width)});
  if (m.image_processor.grid_pinpoints == expected) return;
  const std::string file = m.folder.string() + "/preprocessor_config.json: ";
  if (expected.empty()) throw Error(file + "LlavaNextImageProcessor, but config.json is of a model without tiles");
  if (m.image_processor.grid_pinpoints.empty())
    throw Error(file + "LlavaNextImageProcessor was expected, as config.json is of llava_next");
  throw Error(file + "image_grid_pinpoints are not those of config.json");
}

void check_patches(const LoadedModel& m) {
  const auto check = [&](const char* field, int64_t of_processor, int64_t of_model) {
    if (of_processor != of_model)
      throw Error(m.folder.string() + "/preprocessor_config.json: " + field + ": " + std::to_string(of_processor) +
                  ", but the vision tower of config.json has " + std::to_string(of_model));
  };
  check("patch_size", m.qwen_image_processor.patch_size, m.config.vision.patch_size);
  check("temporal_patch_size", m.qwen_image_processor.temporal_patch_size, m.config.vision.temporal_patch_size);
  check("merge_size", m.qwen_image_processor.merge_size, m.config.vision.merge_size);
}

void check_image_pipeline(const LoadedModel& m) {
  if (m.config.family == Family::kQwen25Vl) return check_patches(m);
  check_pinpoints(m);
  if (m.config.keeps_class_token)
    throw Error(m.folder.string() + "/config.json: vision_feature_select_strategy full: only default is supported");
}

}  // namespace

ModelFacts facts_of(const ModelConfig& config) {
  const DecoderConfig& d = config.decoder;
  int feature_state = 0;
  for (size_t i = 0; i < config.vision_feature_layers.size(); ++i)
    feature_state = std::max(feature_state, config.hidden_state_of_feature(i));
  return {.num_layers = d.num_layers,
          .hidden_size = d.hidden_size,
          .num_heads = d.num_heads,
          .num_kv_heads = d.num_kv_heads,
          .head_dim = d.head_dim,
          .intermediate_size = d.intermediate_size,
          .sliding_window = d.sliding_window,
          .has_mrope = !d.mrope_section.empty(),
          .vision_layers = config.vision.num_layers,
          .vision_feature_layer = feature_state - 1,
          .vision_heads = config.vision.num_heads,
          .vision_hidden_size = config.vision.merge_size * config.vision.merge_size * config.vision.hidden_size,
          .has_class_token = config.vision.has_class_token,
          .has_text_tower = false};
}

LoadedModel load_model(const std::filesystem::path& folder, const EngineOptions& options) {
  if (!std::filesystem::is_directory(folder)) throw Error(folder.string() + ": no such model folder");
  if (options.threads > 0) at::set_num_threads(options.threads);
  const std::filesystem::path config_file = folder / "config.json";
  ModelConfig config = parse_config(read_text_file(config_file), config_file.string());
  const at::Device device = compute_device(options.device);
  const at::ScalarType dtype = compute_dtype(config, options, config_file.string());
  const bool is_qwen = config.family == Family::kQwen25Vl;
  LoadedModel model{.folder = folder,
                    .config = config,
                    .weights = {},
                    .facts = facts_of(config),
                    .tokenizer = Tokenizer::load(folder),
                    .chat_template = ChatTemplate::find(folder),
                    .image_processor = is_qwen ? ImageProcessor() : ImageProcessor::load(folder),
                    .qwen_image_processor = is_qwen ? QwenImageProcessor::load(folder) : QwenImageProcessor(),
                    .generation = read_generation_config(folder),
                    .dtype = dtype,
                    .device = device};
  check_image_pipeline(model);
  model.weights = load_weights(config, folder, dtype, device, options.on_progress);
  if (options.int8_weights) quantise_to_int8(model.weights.decoder);
  return model;
}

}  // namespace espalier
