// SPDX-License-Identifier: Apache-2.0
// Writes a LLaVA-1.5 checkpoint folder with random weights, in the files, keys and names of published ones, so that
// Espalier and Transformers load it as they load the real thing: for speed work at a chosen size.
//
//   make_checkpoint --out DIR [--size demo|150m|500m|1b|7b] [--dtype bf16|f16|f32] [--seed N]
//
// A weight depends only on the seed and its name. Scales are such that every block moves the hidden state and logits
// have clear winners. At sizes other than `demo` whatever id is sampled is text that a server's client sees arrive, but
// for the five special ones and halves of characters.
#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <numbers>
#include <string>
#include <thread>
#include <vector>

#include "base/output_file.h"
#include "base/safetensors.h"
#include "espalier/error.h"
#include "families/families.h"
#include "synth/llava_files.h"

namespace espalier {
namespace {

struct Size {
  const char* name;
  synth::LlavaSize sizes;
};
// The decoders of `150m` to `1b` are those of the project's reference timings; `7b` is LLaVA-1.5-7B's. 16384 positions:
// room for 16 shots in benchmarks.
constexpr std::array<Size, 5> kSizes = {{
    {"demo", synth::kDemoSize},
    {"150m", {768, 2048, 20, 12, 512, 2048, 8, 8, 336, 14, 32064, 16384}},
    {"500m", {1280, 3456, 24, 20, 512, 2048, 8, 8, 336, 14, 32064, 16384}},
    {"1b", {2048, 5504, 20, 16, 512, 2048, 8, 8, 336, 14, 32064, 16384}},
    {"7b", {4096, 11008, 32, 32, 1024, 4096, 24, 16, 336, 14, 32064, 16384}},
}};

// ---- weights ----

uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
  return z ^ (z >> 31);
}

uint64_t hash_of(std::string_view text) {  // FNV-1a
  uint64_t hash = 0xCBF29CE484222325ULL;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3ULL;
  return hash;
}

struct Distribution {
  float mean, deviation;
};

Distribution distribution_of(const std::string& name, const std::vector<int64_t>& shape) {
  const auto has = [&](std::string_view part) { return name.find(part) != std::string::npos; };
  const bool is_norm = has("norm") || has("layrnorm");
  if (name.ends_with(".bias")) return {0, is_norm ? 0.2f : 0.1f};
  if (is_norm) return {1, 0.2f};
  if (has("embed_tokens")) return {0, 0.6f};
  if (has("class_embedding") || has("position_embedding")) return {0, 0.5f};
  int64_t fan_in = 1;
  for (size_t i = 1; i < shape.size(); ++i) fan_in *= shape[i];
  float gain = 1.0f;
  if (has("q_proj") || has("k_proj")) {
    gain = 1.6f;
  } else if (has("lm_head")) {
    gain = 2.0f;
  } else if (has("o_proj") || has("out_proj") || has("down_proj") || has("fc2")) {
    gain = 0.7f;
  }
  return {0, gain / std::sqrt(static_cast<float>(fan_in))};
}

uint16_t to_bf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

uint16_t to_f16(float value) {  // the weights are far from the ends of the range; tiny ones become 0
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000;
  const int exponent = static_cast<int>((bits >> 23) & 0xFF) - 127 + 15;
  if (exponent <= 0) return static_cast<uint16_t>(sign);
  const uint32_t rounded = ((bits & 0x7FFFFF) + 0xFFF + ((bits >> 13) & 1));
  return static_cast<uint16_t>(sign | ((static_cast<uint32_t>(exponent) << 10) + (rounded >> 13)));
}

void fill(std::byte* out, Dtype dtype, const std::string& name, const std::vector<int64_t>& shape, int64_t count,
          uint64_t seed) {
  const Distribution d = distribution_of(name, shape);
  const uint64_t stream = mix(seed + 0x9E3779B97F4A7C15ULL) ^ mix(hash_of(name));
  const auto normals = [&](int64_t i) {  // Box-Muller, element by element, so that threads can share a tensor
    const uint64_t bits = mix(stream + 0x9E3779B97F4A7C15ULL * static_cast<uint64_t>(i + 1));
    const float u = (static_cast<float>(bits >> 40) + 1.0f) * 0x1p-24f,
                angle = static_cast<float>(bits & 0xFFFFFF) * 0x1p-24f;
    return d.mean + d.deviation * std::sqrt(-2.0f * std::log(u)) * std::cos(2.0f * std::numbers::pi_v<float> * angle);
  };
  const auto range = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float value = normals(i);
      if (dtype == Dtype::kF32) {
        reinterpret_cast<float*>(out)[i] = value;
      } else {
        reinterpret_cast<uint16_t*>(out)[i] = dtype == Dtype::kBF16 ? to_bf16(value) : to_f16(value);
      }
    }
  };
  const int64_t threads = std::max<int64_t>(1, std::thread::hardware_concurrency());
  std::vector<std::jthread> workers;
  for (int64_t t = 0; t < threads; ++t) workers.emplace_back(range, count * t / threads, count * (t + 1) / threads);
}

void write_weights(const std::filesystem::path& folder, const ModelConfig& config, Dtype dtype, uint64_t seed) {
  std::vector<NamedShape> names = weight_names(config);
  // Published files hold the tower's last norm too, though the features never pass it.
  for (const char* part : {"weight", "bias"})
    names.push_back({std::string("vision.post_layernorm.") + part, {config.vision.hidden_size}});
  std::vector<int64_t> counts;
  int64_t total = 0;
  for (const NamedShape& n : names) {
    int64_t count = 1;
    for (const int64_t extent : n.shape) count *= extent;
    counts.push_back(count);
    total += count;
  }
  std::vector<std::byte> bytes(static_cast<size_t>(total * size_of(dtype)));
  std::vector<TensorToWrite> tensors;
  std::byte* next = bytes.data();
  for (size_t i = 0; i < names.size(); ++i) {
    fill(next, dtype, names[i].name, names[i].shape, counts[i], seed);
    tensors.push_back({synth::published_name(names[i].name), dtype, names[i].shape, next});
    next += counts[i] * size_of(dtype);
  }
  write_safetensors(folder / "model.safetensors", tensors, {{"format", "pt"}});
  std::printf("%s: %.1f M parameters, %.1f MB\n", folder.c_str(), static_cast<double>(total) / 1e6,
              static_cast<double>(bytes.size()) / 1e6);
}

void make_checkpoint(const std::filesystem::path& folder, const synth::LlavaSize& size, const std::string& dtype_name,
                     uint64_t seed) {
  const bool is_f32 = dtype_name == "f32", is_f16 = dtype_name == "f16";
  const Dtype dtype = is_f32 ? Dtype::kF32 : is_f16 ? Dtype::kF16 : Dtype::kBF16;
  const std::string torch_name = is_f32 ? "float32" : is_f16 ? "float16" : "bfloat16";
  std::filesystem::create_directories(folder);
  for (const synth::FolderFile& file : synth::llava_files(size, torch_name)) {
    OutputFile out(folder / file.name);
    out.write(file.text);
    out.commit();
  }
  write_weights(folder, parse_config(synth::llava_config(size, torch_name), "config.json"), dtype, seed);
}

}  // namespace
}  // namespace espalier

int main(int argc, char** argv) {
  using namespace espalier;
  CLI::App app("Write a LLaVA-1.5 checkpoint with random weights.");
  std::string out, size_name = "demo", dtype = "bf16";
  uint64_t seed = 0;
  app.add_option("--out", out, "folder to write")->required();
  app.add_option("--size", size_name, "decoder size")->check(CLI::IsMember({"demo", "150m", "500m", "1b", "7b"}));
  app.add_option("--dtype", dtype, "stored type")->check(CLI::IsMember({"bf16", "f16", "f32"}));
  app.add_option("--seed", seed, "of the weights");
  CLI11_PARSE(app, argc, argv);
  try {
    make_checkpoint(out, std::ranges::find_if(kSizes, [&](const Size& s) { return size_name == s.name; })->sizes, dtype,
                    seed);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "make_checkpoint: %s\n", error.what());
    return 1;
  }
  return 0;
}
