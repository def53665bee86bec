// SPDX-License-Identifier: Apache-2.0
#include "runtime/loaded_model.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>

#include "base/json_file.h"
#include "espalier/error.h"
#include "families/families.h"
#include "kernels/support/cpu_level.h"
#include "layout/policy_defaults.h"
#include "model/checkpoint.h"
#include "runtime/kv_arena.h"

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

// As in costs (costs_file.h).
std::string name_of(at::ScalarType dtype, bool is_int8) {
  return std::string(dtype_option(dtype)) + (is_int8 ? "+int8" : "");
}

at::Device compute_device(DeviceKind kind) {
  if (kind == DeviceKind::kCpu) return at::kCPU;
  if (!at::hasCUDA()) throw Error("device cuda: this build or this machine has no CUDA device");
  return at::Device(at::kCUDA, 0);
}

// Tensors of the checkpoint in the compute dtype on the compute device, counted as they are given out. `bytes` must
// outlive the source.
WeightSource weights_of(const std::filesystem::path& folder, at::ScalarType dtype, at::Device device, int64_t total,
                        const Progress& on_progress, int64_t& bytes) {
  const auto checkpoint = std::make_shared<const Checkpoint>(Checkpoint::open(folder));
  const auto done = std::make_shared<int64_t>(0);
  return [=, &bytes](const std::string& name, at::IntArrayRef shape) {
    const TensorView* view = checkpoint->find(name);
    if (!view) throw Error(folder.string() + ": the weights lack " + name);
    if (!std::ranges::equal(view->shape, shape))
      throw Error(c10::str(folder.string(), ": ", name, ": config.json asks for shape ", shape, ", the file has ",
                           at::IntArrayRef(view->shape)));
    const at::Tensor weight =
        over_map(*view, scalar_type(view->dtype, folder.string() + ": " + name)).to(device, dtype);
    bytes += static_cast<int64_t>(weight.nbytes());
    if (on_progress) on_progress("load", ++*done, total);
    return weight;
  };
}

// What a raw prompt has where a picture stands: the placeholder, between the marks of families that have some.
std::string words_of_a_picture(const Tokenizer& tokenizer, int32_t image_token) {
  const int32_t ids[] = {image_token};
  const std::string placeholder = tokenizer.decode(ids);
  const std::string begin = "<|vision_start|>", end = "<|vision_end|>";
  return tokenizer.id_of(begin) && tokenizer.id_of(end) ? begin + placeholder + end : placeholder;
}

std::string name_of(at::ScalarType dtype) {
  return dtype == at::kFloat ? "float32" : dtype == at::kBFloat16 ? "bfloat16" : "float16";
}

std::string words_of(const std::optional<ChatTemplate>& chat_template) {
  if (!chat_template) return "none; raw prompts only";
  return chat_template->name() + (chat_template->takes_text_only() ? ", made for text: pictures are put in" : "");
}

void describe(const LoadedModel& model, const EngineOptions& options, int64_t weight_bytes) {
  if (!model.log.says(LogLevel::kVerbose)) return;
  const ModelFacts& facts = model.facts;
  model.log.verbose(c10::str("model: ", model.folder.string(), ", ", facts.family, ", ", facts.num_layers,
                             " decoder layers of width ", facts.hidden_size, ", ", facts.dtype,
                             options.int8_weights ? " with int8 weights" : ""));
  model.log.verbose("chat template: " + words_of(model.chat_template));
  for (const PolicyDefault& set : facts.policy_defaults)
    model.log.verbose(c10::str("policies: ", set.policy, " takes ", set.option, "=", set.value, " on this model"));
  if (model.device.is_cuda())
    model.log.verbose("kernels: CUDA" + std::string(options.decode_graphs ? ", decoding as a graph" : ""));
  else
    model.log.verbose(c10::str("kernels: ", name_of(kernels::cpu_level()), ", ", at::get_num_threads(), " threads"));
  model.log.verbose(c10::str("memory: ", weight_bytes >> 20, " MiB of weights read, ",
                             bytes_per_kv_row(model.config.decoder, model.dtype) * facts.num_layers / 1024,
                             " KiB of KV cache per token"));
}

}  // namespace

std::string_view dtype_option(at::ScalarType dtype) {
  return dtype == at::kFloat ? "f32" : dtype == at::kBFloat16 ? "bf16" : "f16";
}

ModelFacts facts_of(const ModelConfig& config, const std::filesystem::path& folder) {
  const DecoderConfig& d = config.decoder;
  const VisionFacts& v = config.vision;
  return {.num_layers = d.num_layers,
          .hidden_size = d.hidden_size,
          .num_heads = d.num_heads,
          .num_kv_heads = d.num_kv_heads,
          .head_dim = d.head_dim,
          .intermediate_size = d.intermediate_size,
          .sliding_window = d.sliding_window,
          .has_mrope = !d.mrope_section.empty(),
          .vision_layers = v.num_layers,
          .vision_feature_layer = v.feature_layers - 1,
          .vision_heads = v.num_heads,
          .vision_hidden_size = v.patches_per_token * v.hidden_size,
          .has_class_token = v.has_class_token,
          .has_text_tower = false,
          .name = std::filesystem::absolute(folder / "").lexically_normal().parent_path().filename().string(),
          .family = std::string(config.family),
          .dtype = config.dtype,
          .policy_defaults = policy_defaults_of(folder)};
}

LoadedModel load_model(const std::filesystem::path& folder, const EngineOptions& options) {
  if (!is_folder(folder)) throw Error(folder.string() + ": no such model folder");
  if (options.threads > 0) at::set_num_threads(options.threads);
  const std::filesystem::path config_file = folder / "config.json";
  ModelConfig config = parse_config(read_text_file(config_file), config_file.string());
  const at::Device device = compute_device(options.device);
  const at::ScalarType dtype = compute_dtype(config, options, config_file.string());
  LoadedModel model{.folder = folder,
                    .config = config,
                    .front_end = {},
                    .weights = {},
                    .facts = facts_of(config, folder),
                    .tokenizer = Tokenizer::load(folder),
                    .chat_template = options.chat_template.empty() ? ChatTemplate::find(folder)
                                                                   : ChatTemplate::read(options.chat_template, folder),
                    .generation = read_generation_config(folder),
                    .dtype = dtype,
                    .device = device,
                    .costs = find_costs(folder, options.costs, name_of(dtype, options.int8_weights),
                                        device.is_cpu() ? "cpu" : "cuda"),
                    .log = Log(options.log_level, options.log)};
  model.facts.dtype = name_of(dtype);
  if (model.chat_template)
    model.chat_template->set_placeholder(words_of_a_picture(model.tokenizer, config.image_token_id));
  int64_t weight_bytes = 0;
  const WeightSource source =
      weights_of(folder, dtype, device, std::ssize(weight_names(config)), options.on_progress, weight_bytes);
  model.front_end = config.load_front_end(folder, source);
  model.weights.decoder = bind_decoder(config.decoder, source);
  if (options.int8_weights) quantise_to_int8(model.weights.decoder);
  describe(model, options, weight_bytes);
  return model;
}

}  // namespace espalier
