// SPDX-License-Identifier: Apache-2.0
#include "pictures/qwen_image_processor.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>

#include "base/json_fields.h"
#include "base/json_file.h"
#include "espalier/error.h"
#include "pictures/image_transforms.h"
#include "pictures/processor_fields.h"

namespace espalier {
namespace {

constexpr int kMaxRatio = 200;       // as Transformers
constexpr int64_t kMaxPatch = 1024;  // of what a config may ask for

int64_t read_positive(const JsonFields& fields, const char* key, int64_t fallback, int64_t most) {
  const int64_t value = fields.integer(key).value_or(fallback);
  if (value < 1 || value > most) fields.fail(key, "an integer from 1 to " + std::to_string(most));
  return value;
}

// Published files say min_pixels and max_pixels, newer saves `size` with the same numbers under other names; where both
// are there the former win, as in Transformers.
void read_pixel_range(const JsonFields& fields, const std::string& file, QwenImageProcessor& out) {
  if (const nlohmann::json* size = fields.find("size")) {
    const JsonFields edges(*size, file, "size.");
    if (!fields.find("min_pixels")) out.min_pixels = read_positive(edges, "shortest_edge", 0, kMaxImagePixels);
    if (!fields.find("max_pixels")) out.max_pixels = read_positive(edges, "longest_edge", 0, kMaxImagePixels);
  }
  out.min_pixels = read_positive(fields, "min_pixels", out.min_pixels, kMaxImagePixels);
  out.max_pixels = read_positive(fields, "max_pixels", out.max_pixels, kMaxImagePixels);
  if (out.min_pixels > out.max_pixels)
    throw Error(file + ": pixels of a picture: " + std::to_string(out.min_pixels) + " at least, but " +
                std::to_string(out.max_pixels) + " at most");
}

std::string size_text(int64_t width, int64_t height) {
  return std::to_string(width) + "x" + std::to_string(height);
}

struct Extent {
  int64_t width, height;
};

// Multiples of `factor` near the picture's own sides, fewer or more where the number of pixels asks for it.
Extent resized_extent(const QwenImageProcessor& processor, int width, int height) {
  const int factor = processor.patch_size * processor.merge_size;
  const auto rounded = [&](int side) {  // halves to even
    return static_cast<int64_t>(std::nearbyint(static_cast<double>(side) / factor)) * factor;
  };
  const Extent near{rounded(width), rounded(height)};
  const double pixels = static_cast<double>(width) * height;
  if (near.width * near.height > processor.max_pixels) {
    const double shrink = std::sqrt(pixels / static_cast<double>(processor.max_pixels));
    const auto lower = [&](int side) {
      return std::max<int64_t>(1, static_cast<int64_t>(std::floor(side / shrink / factor))) * factor;
    };
    return {lower(width), lower(height)};
  }
  if (near.width * near.height < processor.min_pixels) {  // a side may have become 0
    const double grow = std::sqrt(static_cast<double>(processor.min_pixels) / pixels);
    const auto higher = [&](int side) { return static_cast<int64_t>(std::ceil(side * grow / factor)) * factor; };
    return {higher(width), higher(height)};
  }
  return near;
}

Normalization normalization_of(const QwenImageProcessor& processor) {
  Normalization normalization;
  if (processor.do_rescale) normalization.scale = processor.rescale_factor;
  if (processor.do_normalize) {
    std::ranges::copy(processor.image_mean, normalization.mean.begin());
    std::ranges::copy(processor.image_std, normalization.std.begin());
  }
  return normalization;
}

// One patch of planar pixels [3, height, width], its top left corner at `first` of each plane.
float* copy_patch(const QwenImageProcessor& processor, const float* planes, size_t plane, size_t first, size_t width,
                  float* to) {
  const auto side = static_cast<size_t>(processor.patch_size);
  for (size_t channel = 0; channel < 3; ++channel)
    for (int frame = 0; frame < processor.temporal_patch_size; ++frame)
      for (size_t y = 0; y < side; ++y) to = std::copy_n(planes + channel * plane + first + y * width, side, to);
  return to;
}

}  // namespace

QwenImageProcessor QwenImageProcessor::load(const std::filesystem::path& folder) {
  std::string file;
  const nlohmann::json config = read_processor_config(folder, file);
  const JsonFields fields(config, file);
  if (processor_type(fields) != "Qwen2VLImageProcessor") fields.fail("image_processor_type", "Qwen2VLImageProcessor");
  QwenImageProcessor out;
  out.do_resize = fields.boolean("do_resize").value_or(out.do_resize);
  if (out.do_resize) check_bicubic(fields);
  read_pixel_range(fields, file, out);
  out.patch_size = static_cast<int>(read_positive(fields, "patch_size", out.patch_size, kMaxPatch));
  out.temporal_patch_size =
      static_cast<int>(read_positive(fields, "temporal_patch_size", out.temporal_patch_size, kMaxPatch));
  out.merge_size = static_cast<int>(read_positive(fields, "merge_size", out.merge_size, kMaxPatch));
  out.do_rescale = fields.boolean("do_rescale").value_or(out.do_rescale);
  out.rescale_factor = fields.number("rescale_factor").value_or(out.rescale_factor);
  out.do_normalize = fields.boolean("do_normalize").value_or(out.do_normalize);
  read_channels(fields, "image_mean", out.image_mean);
  read_channels(fields, "image_std", out.image_std);
  if (std::ranges::count(out.image_std, 0.0) > 0) fields.fail("image_std", "numbers other than 0");
  return out;
}

PatchGrid patch_grid(const QwenImageProcessor& processor, int width, int height) {
  const int64_t longer = std::max(width, height), shorter = std::min(width, height);
  const int factor = processor.patch_size * processor.merge_size;
  if (longer > int64_t{kMaxRatio} * shorter)
    throw Error("image of " + size_text(width, height) + " pixels: its sides differ more than " +
                std::to_string(kMaxRatio) + " : 1");
  const Extent extent = processor.do_resize ? resized_extent(processor, width, height) : Extent{width, height};
  if (extent.width % factor != 0 || extent.height % factor != 0)
    throw Error("image of " + size_text(width, height) +
                " pixels: do_resize is off, and its sides are not multiples of " + std::to_string(factor));
  if (extent.width * extent.height > kMaxImagePixels)
    throw Error("image of " + size_text(width, height) + " pixels becomes " + size_text(extent.width, extent.height) +
                " in preprocessing, at most " + std::to_string(kMaxImagePixels) + " pixels are made");
  return {static_cast<int>(extent.height / processor.patch_size),
          static_cast<int>(extent.width / processor.patch_size)};
}

PatchValues preprocess(const QwenImageProcessor& processor, const Image& image) {
  return preprocess(processor, image, patch_grid(processor, image.width, image.height));
}

PatchValues preprocess(const QwenImageProcessor& processor, const Image& image, PatchGrid grid) {
  PatchValues out{grid, 0, {}};
  const int side = processor.patch_size, merge = processor.merge_size;
  const int width = out.grid.cols * side, height = out.grid.rows * side;
  std::vector<float> planes;
  normalize(resize_bicubic(image, width, height), normalization_of(processor), planes);
  const size_t plane = size_t{1} * width * height;
  out.width = 3 * processor.temporal_patch_size * side * side;
  out.values.resize(size_t{1} * out.grid.rows * out.grid.cols * out.width);
  float* to = out.values.data();
  for (int cell_row = 0; cell_row < out.grid.rows; cell_row += merge)
    for (int cell_col = 0; cell_col < out.grid.cols; cell_col += merge)
      for (int row = cell_row; row < cell_row + merge; ++row)
        for (int col = cell_col; col < cell_col + merge; ++col)
          to = copy_patch(processor, planes.data(), plane, size_t{1} * row * side * width + size_t{1} * col * side,
                          static_cast<size_t>(width), to);
  return out;
}

}  // namespace espalier
