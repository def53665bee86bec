// SPDX-License-Identifier: Apache-2.0
// The JSON of a checkpoint folder but for its tokenizer: each file by its own reader, and config.json by its family,
// which goes on to the processor's file and stops where it asks for weights.
#include <array>

#include "espalier/error.h"
#include "families/families.h"
#include "model/checkpoint.h"
#include "model/generation_config.h"
#include "pictures/image_processor.h"
#include "pictures/qwen_image_processor.h"
#include "tests/fuzz/scratch.h"
#include "tests/fuzz/targets.h"
#include "text/chat_template.h"

namespace espalier::fuzz {

namespace {

constexpr std::array kFiles = {"config.json",           "preprocessor_config.json",
                               "processor_config.json", "generation_config.json",
                               "tokenizer_config.json", "model.safetensors.index.json"};
constexpr std::array<std::array<int, 2>, 3> kSizes = {{{56, 56}, {1, 200}, {4000, 3}}};  // width, height

at::Tensor no_weights(const std::string& name, at::IntArrayRef) {
  throw Error(name + ": no weights here");
}

}  // namespace

void run_config(std::string_view input) {
  const std::vector<std::string_view> parts = split(input, kFiles.size());
  for (size_t i = 0; i < kFiles.size(); ++i) {
    if (i < parts.size() && !parts[i].empty())
      write_scratch(kFiles[i], parts[i]);
    else
      remove_scratch(kFiles[i]);
  }
  const std::filesystem::path& folder = scratch_folder();
  may_refuse([&] {
    const ModelConfig config = parse_config(parts[0], "config.json");
    static_cast<void>(config.load_front_end(folder, no_weights));
  });
  may_refuse([&] {
    const ImageProcessor processor = ImageProcessor::load(folder);
    for (const auto& [width, height] : kSizes)
      may_refuse([&, w = width, h = height] { static_cast<void>(crop_boxes(processor, w, h)); });
  });
  may_refuse([&] {
    const QwenImageProcessor processor = QwenImageProcessor::load(folder);
    for (const auto& [width, height] : kSizes)
      may_refuse([&, w = width, h = height] { static_cast<void>(patch_grid(processor, w, h)); });
  });
  may_refuse([&] { static_cast<void>(read_generation_config(folder)); });
  may_refuse([&] { static_cast<void>(ChatTemplate::find(folder)); });
  may_refuse([&] { static_cast<void>(Checkpoint::open(folder)); });
}

}  // namespace espalier::fuzz
