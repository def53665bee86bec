// SPDX-License-Identifier: Apache-2.0
#include "recording/record.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/einsum.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/pad.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>

#include "base/json_schema.h"
#include "base/output_file.h"
#include "base/safetensors.h"
#include "espalier/error.h"
#include "espalier/recording.h"
#include "layout/layout_json.h"
#include "model/decoder.h"
#include "runtime/engine_impl.h"
#include "runtime/generate.h"
#include "runtime/request_run.h"
#include "runtime/signals.h"

namespace espalier {

namespace {

using Arrays = std::map<std::string, at::Tensor>;

// "attention.5" is asked for by that name, by its family "attention", or by asking for everything.
class Wanted {
 public:
  explicit Wanted(const std::vector<std::string>& only) : only_(only) {}
  bool operator()(const std::string& name) const {
    return only_.empty() || std::ranges::any_of(only_, [&](const std::string& asked) {
             return name == asked || (name.starts_with(asked) && name[asked.size()] == '.');
           });
  }

 private:
  const std::vector<std::string>& only_;
};

at::Tensor as_float(const at::Tensor& t) {
  return t.to(at::kFloat).cpu().contiguous();
}

// `values` [.., n', ..] of the tokens that are there, at their places among all; the rest is zero.
at::Tensor scatter_tokens(const at::Tensor& values, int64_t dimension, const at::Tensor& source_index,
                          int64_t num_tokens) {
  const at::Tensor has_place = (source_index >= 0).nonzero().squeeze(1);
  std::vector<int64_t> shape = values.sizes().vec();
  shape[static_cast<size_t>(dimension)] = num_tokens;
  return at::zeros(shape, values.options())
      .index_copy(dimension, source_index.index_select(0, has_place), values.index_select(dimension, has_place));
}

at::Tensor attention_map(const DecoderConfig& config, const LayerView& view) {
  const int64_t n = view.query.size(0), repeat = config.num_heads / config.num_kv_heads;
  const at::Tensor q = view.query.to(at::kFloat), k = view.key.to(at::kFloat).repeat_interleave(repeat, 1);
  at::Tensor scores = at::einsum("qhd,khd->hqk", {q, k}) * attention_scale(config);
  const at::Tensor index = at::arange(n, view.layout.source_index.options());
  at::Tensor hidden = index.unsqueeze(0) > index.unsqueeze(1);
  if (config.sliding_window > 0) {
    const at::Tensor p = view.layout.position_id;
    hidden = hidden | (p.unsqueeze(1) - p.unsqueeze(0) >= config.sliding_window);
  }
  return at::softmax(scores.masked_fill(hidden, -INFINITY), -1);
}

class Recorder final : public RunWatcher {
 public:
  Recorder(const LoadedModel& model, const std::vector<std::string>& only) : model_(model), wanted_(only) {}

  bool watches_vision() const override { return true; }
  void on_vision_layer(size_t image, const ImagePlan& plan, const VisionLayerTrace& trace) override {
    vision_layer(image, plan, trace);
  }
  void on_vision_output(const at::Tensor& features, const at::Tensor& classes) override {
    add("vision.output", features);
    if (classes.defined()) add("vision.cls_output", classes);
  }
  // States are what reaches a point, whose policy judges tokens that it then drops; hidden.0 is that of
  // projector_output.
  void on_embedded(const TokenLayout& layout, const at::Tensor& hidden) override {
    prompt_ = layout.prompt;
    state(0, layout, hidden);
  }
  void on_state(int layer, const TokenLayout& layout, const at::Tensor& hidden) override {
    if (layer > 0) state(layer, layout, hidden);
  }
  bool watches_layers() const override { return true; }
  void on_layer(const LayerView& view) override {
    decoder_layer(view);
    layouts_[view.layer] = view.layout;
  }
  bool watches_generated() const override { return model_.config.decoder.sliding_window == 0; }
  void on_generated(int layer, int64_t generated, const at::Tensor& attention) override {
    num_generated_ = generated;
    const std::string name = "generated.attention." + std::to_string(layer);
    if (!wanted_(name)) return;
    const TokenLayout& layout = layouts_.at(layer);
    const int64_t n = layout.num_tokens();
    // Of a cache that was cut once nobody knows any more whose row stands where; nor can a step read it.
    if (attention.size(1) != n + generated) return;
    generated_[name].push_back(
        as_float(at::cat({scatter_tokens(attention.slice(1, 0, n), 1, layout.source_index, layout.prompt->num_tokens),
                          attention.slice(1, n)},
                         1)));
  }
  // What a policy read of the layer that was about to run is what a replay has to read.
  void on_look_ahead(const LayerView& view) override {
    attention(view);
    looked_at_.insert(view.layer);
  }
  void on_output(const TokenLayout& layout, const at::Tensor& hidden) override {
    state(model_.config.decoder.num_layers, layout, hidden);
  }

  const PromptLayout& prompt() const { return *prompt_; }
  int64_t num_generated() const { return num_generated_; }

  // Arrays that were collected image by image and token by token, joined.
  Arrays finish() {
    for (const auto& [name, parts] : by_image_)
      arrays_[name] = as_float(at::cat(parts, name.starts_with("vision.key.") ? 0 : -1));
    for (auto& [name, rows] : generated_) {
      for (at::Tensor& row : rows) row = at::pad(row, {0, rows.back().size(1) - row.size(1)});
      arrays_[name] = at::stack(rows, 1);
    }
    return std::move(arrays_);
  }

 private:
  void add(const std::string& name, const at::Tensor& t) {
    if (wanted_(name)) arrays_[name] = as_float(t);
  }

  void add_tokens(const std::string& name, const at::Tensor& t, int64_t dimension, const TokenLayout& layout) {
    if (wanted_(name))
      arrays_[name] = as_float(scatter_tokens(t, dimension, layout.source_index, layout.prompt->num_tokens));
  }

  void state(int layer, const TokenLayout& layout, const at::Tensor& hidden) {
    add_tokens("hidden." + std::to_string(layer), hidden, 0, layout);
    if (wanted_("final_norm." + std::to_string(layer)))
      add_tokens("final_norm." + std::to_string(layer),
                 final_norm(model_.config.decoder, model_.weights.decoder, hidden), 0, layout);
  }

  void decoder_layer(const LayerView& view) {
    const std::string layer = std::to_string(view.layer);
    add_tokens("query." + layer, view.query.transpose(0, 1), 1, view.layout);
    add_tokens("key." + layer, view.key.transpose(0, 1), 1, view.layout);
    if (!looked_at_.contains(view.layer)) attention(view);
  }

  void attention(const LayerView& view) {
    const std::string name = "attention." + std::to_string(view.layer);
    if (!wanted_(name)) return;
    const int64_t n = view.layout.prompt->num_tokens;
    const at::Tensor rows = scatter_tokens(attention_map(model_.config.decoder, view), 1, view.layout.source_index, n);
    arrays_[name] = as_float(scatter_tokens(rows, 2, view.layout.source_index, n));
  }

  void vision_layer(size_t image, const ImagePlan& plan, const VisionLayerTrace& t) {
    const auto in_order = [&](const at::Tensor& values, int64_t dimension) {
      return in_sequence_order(values, dimension, plan.tower_row);
    };
    const VisionFacts& facts = model_.config.vision;
    const std::string layer = std::to_string(t.layer);
    if (const std::string name = "vision.key." + layer; wanted_(name))
      by_image_[name].push_back(in_order(vision_keys(facts, t), 0));
    if (!facts.has_class_token) return;  // nor is there a map between tokens that are merged from patches
    const int64_t crops = t.output.size(0), p1 = t.output.size(1);
    const at::Tensor q = t.query.to(at::kFloat).view({crops, p1, facts.num_heads, -1});
    const at::Tensor k = t.key.to(at::kFloat).view({crops, p1, facts.num_heads, -1});
    const double scale = 1.0 / std::sqrt(static_cast<double>(facts.head_dim()));
    if (const std::string name = "vision.cls_attention." + layer; wanted_(name)) {
      const at::Tensor scores = at::einsum("chd,ckhd->hck", {q.select(1, 0), k}) * scale;
      by_image_[name].push_back(in_order(at::softmax(scores, -1).slice(2, 1).flatten(1), -1));
    }
    if (const std::string name = "vision.cls_attention_joint." + layer; wanted_(name)) {
      const at::Tensor scores =
          at::einsum("chd,ckhd->ck", {q.select(1, 0), k}) / std::sqrt(static_cast<double>(facts.hidden_size));
      by_image_[name].push_back(in_order(at::softmax(scores, -1).slice(1, 1).flatten(), 0));
    }
    if (const std::string name = "vision.attention." + layer + "." + std::to_string(image); wanted_(name) && crops == 1)
      arrays_[name] = as_float(at::softmax(at::einsum("qhd,khd->hqk", {q[0], k[0]}) * scale, -1));
  }

  const LoadedModel& model_;
  Wanted wanted_;
  std::shared_ptr<const PromptLayout> prompt_;
  Arrays arrays_;
  std::set<int> looked_at_;             // layers whose attention a policy read ahead
  std::map<int, TokenLayout> layouts_;  // by layer: of the tokens that entered
  std::map<std::string, std::vector<at::Tensor>> generated_;
  int64_t num_generated_ = 0;
  std::map<std::string, std::vector<at::Tensor>> by_image_;
};

// The tensors that are compared with the reference.
struct Dump final : RunWatcher {
  explicit Dump(const LoadedModel& loaded) : model(loaded) {}

  bool watches_pixels() const override { return true; }
  void on_pixels(const at::Tensor& p) override { pixels.push_back(p); }
  void on_image_tokens(const at::Tensor& tokens) override { arrays["image_features"] = as_float(tokens); }
  bool watches_layers() const override { return true; }
  void on_layer(const LayerView& view) override {
    arrays["hidden." + std::to_string(view.layer)] = as_float(view.hidden);
    if (view.layer == 0) arrays["position_ids"] = view.layout.position_id.cpu().contiguous();
  }
  void on_output(const TokenLayout&, const at::Tensor& hidden) override {
    arrays["hidden." + std::to_string(model.config.decoder.num_layers)] = as_float(hidden);
    const at::Tensor normed = final_norm(model.config.decoder, model.weights.decoder, hidden);
    arrays["final_norm"] = as_float(normed);
    arrays["logits"] = as_float(logits(model.weights.decoder, normed));
  }

  const LoadedModel& model;
  Arrays arrays;
  std::vector<at::Tensor> pixels;
};

Dtype dtype_of(const at::Tensor& t) {
  return t.scalar_type() == at::kLong ? Dtype::kI64 : Dtype::kF32;
}

// What a file says of itself (docs/formats.md).
std::map<std::string, std::string> metadata_of(const char* format, const LoadedModel& model, const Request& request) {
  return {{"format", format},
          {"schema", std::to_string(kJsonSchema)},
          {"model", model.folder.filename().string()},
          {"policy", for_model(policy_of(request), model.facts)->spec()}};
}

void write_arrays(OutputFile& file, const Arrays& arrays, const std::map<std::string, std::string>& metadata) {
  std::vector<TensorToWrite> tensors;
  for (const auto& [name, t] : arrays) tensors.push_back({name, dtype_of(t), t.sizes().vec(), t.data_ptr()});
  write_safetensors(file, tensors, metadata);
}

at::Tensor long_tensor(const std::vector<int32_t>& ids) {
  return at::tensor(std::vector<int64_t>(ids.begin(), ids.end()), at::kLong);
}

at::Tensor read_pixel_values(const std::filesystem::path& file) {
  if (file.empty()) return {};
  const SafetensorsFile prepared = SafetensorsFile::open(file);
  const auto found = prepared.tensors().find("pixel_values");
  if (found == prepared.tensors().end()) throw Error(file.string() + ": it has no tensor pixel_values");
  const TensorView& view = found->second;
  if (view.dtype != Dtype::kF32)
    throw Error(file.string() + ": pixel_values: expected F32, got " + std::string(name_of(view.dtype)));
  at::Tensor pixels = at::empty(view.shape, at::kFloat);
  std::ranges::copy(view.bytes, static_cast<std::byte*>(pixels.data_ptr()));
  return pixels;
}

std::string dump_json(const Result& result) {
  const nlohmann::ordered_json json = {{"schema", kJsonSchema},
                                       {"input_ids", result.prompt_token_ids},
                                       {"prompt", result.prompt},
                                       {"greedy_tokens", result.token_ids},
                                       {"text", result.text}};
  return json.dump(1) + "\n";
}

}  // namespace

namespace {

Recording record(const LoadedModel& model, const Request& request, const std::vector<std::string>& only,
                 const Callbacks& callbacks, int64_t generated) {
  if (generated < 0) throw Error("generated: 0 or more was expected, got " + std::to_string(generated));
  if (generated > 0 && model.config.decoder.sliding_window > 0)
    throw Error("generated: attention of an answer is not recorded with a sliding window");
  Request shortened = request;
  shortened.options.max_new_tokens = generated + 1;  // the last one's row is not in the cache
  Recorder recorder(model, only);
  const Result result = generate(model, shortened, callbacks, {.watcher = &recorder});
  if (result.finish_reason == FinishReason::kCancelled) throw Cancelled();
  const c10::InferenceMode no_gradients;
  Recording recording{.layout = layout_to_json(recorder.prompt(), model.facts, recorder.num_generated()),
                      .signals = recorder.finish()};
  for (const std::string& name : only)
    if (std::ranges::none_of(recording.signals, [&](const auto& entry) { return Wanted({name})(entry.first); }))
      throw Error("only " + name + ": this model and prompt record nothing of that name");
  return recording;
}

}  // namespace

std::optional<Recording> record(const Engine& engine, const Request& request, const std::vector<std::string>& only,
                                const Callbacks& callbacks, int64_t generated) {
  std::optional<Recording> recording;
  try {
    engine.impl().compute->run([&] { recording = record(engine.impl().model, request, only, callbacks, generated); });
  } catch (const Cancelled&) {
    return std::nullopt;
  }
  return recording;
}

void record(const LoadedModel& model, const Request& request, const RecordFiles& files, const Callbacks& callbacks) {
  check_outputs({}, {files.signals, files.layout});
  const Recording recording = record(model, request, files.only, callbacks, files.generated);
  OutputFile layout(files.layout), signals(files.signals);
  layout.write(recording.layout);
  write_arrays(signals, recording.signals, metadata_of("espalier.signals", model, request));
  commit({&signals, &layout});
}

Result generate_from_pixels(const LoadedModel& model, const Request& request, const std::filesystem::path& pixel_values,
                            const Callbacks& callbacks) {
  return generate(model, request, callbacks, {.pixel_values = read_pixel_values(pixel_values)});
}

Result dump(const LoadedModel& model, const Request& request, const std::filesystem::path& prefix,
            const std::filesystem::path& pixel_values, const Callbacks& callbacks) {
  Dump dump(model);
  const Result result =
      generate(model, request, callbacks, {.watcher = &dump, .pixel_values = read_pixel_values(pixel_values)});
  if (result.finish_reason == FinishReason::kCancelled) throw Cancelled();
  Arrays& arrays = dump.arrays;
  if (!dump.pixels.empty()) arrays["pixel_values"] = model.front_end.batch_pixels(dump.pixels);
  arrays["input_ids"] = long_tensor(result.prompt_token_ids);
  arrays["greedy_tokens"] = long_tensor(result.token_ids);
  OutputFile json(prefix.string() + ".json"), tensors(prefix.string() + ".safetensors");
  json.write(dump_json(result));
  write_arrays(tensors, arrays, metadata_of("espalier.dump", model, request));
  commit({&tensors, &json});
  return result;
}

}  // namespace espalier
