// SPDX-License-Identifier: Apache-2.0
#include "pictures/image_processor.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "base/json_fields.h"
#include "base/json_file.h"
#include "espalier/error.h"
#include "pictures/image_transforms.h"
#include "pictures/processor_fields.h"

namespace espalier {
namespace {

using nlohmann::json;

constexpr int kMaxSide = 16384;  // of what a config may ask for
constexpr std::string_view kAnyResolution = "LlavaNextImageProcessor";

int read_side(const JsonFields& fields, const char* key) {
  const std::optional<int64_t> side = fields.integer(key);
  if (!side || *side < 1 || *side > kMaxSide) fields.fail(key, "an integer from 1 to " + std::to_string(kMaxSide));
  return static_cast<int>(*side);
}

ImageProcessor::Size read_height_width(const json& value, const std::string& file, const std::string& prefix) {
  const JsonFields fields(value, file, prefix);
  return {read_side(fields, "height"), read_side(fields, "width")};
}

void read_size(const JsonFields& fields, const std::string& file, ImageProcessor& out) {
  const json* size = fields.find("size");
  if (!size) return;
  if (size->is_number()) {
    out.shortest_edge = read_side(fields, "size");
  } else if (size->is_object() && size->contains("shortest_edge")) {
    if (size->size() != 1) fields.fail("size", "shortest_edge alone or height and width");
    out.shortest_edge = read_side(JsonFields(*size, file, "size."), "shortest_edge");
  } else {
    out.shortest_edge.reset();
    out.size = read_height_width(*size, file, "size.");
  }
}

void read_crop_size(const JsonFields& fields, const std::string& file, ImageProcessor& out) {
  const json* crop_size = fields.find("crop_size");
  if (!crop_size) return;
  if (crop_size->is_number()) {
    const int side = read_side(fields, "crop_size");
    out.crop_size = {side, side};
  } else {
    out.crop_size = read_height_width(*crop_size, file, "crop_size.");
  }
}

// One of the classes that make crops of a fixed size.
std::string read_type(const JsonFields& fields) {
  std::string type = processor_type(fields);
  if (type.empty() && fields.string("feature_extractor_type") == "CLIPFeatureExtractor") type = "CLIPImageProcessor";
  if (type == "CLIPImageProcessor" || type == "LlavaImageProcessor" || type == kAnyResolution) return type;
  fields.fail("image_processor_type", "CLIPImageProcessor, LlavaImageProcessor or LlavaNextImageProcessor");
}

// Tiles are cut at crop_size and the full view is made at size: both are what the tower takes, or nothing fits.
void read_any_resolution(const JsonFields& fields, ImageProcessor& out) {
  const auto [height, width] = out.crop_size;
  const auto size = out.shortest_edge ? ImageProcessor::Size{*out.shortest_edge, *out.shortest_edge} : out.size;
  if (height != width || size != out.crop_size)
    fields.fail("crop_size", "a square as large as size (" + std::to_string(size.height) + " x " +
                                 std::to_string(size.width) + ") for LlavaNextImageProcessor");
  out.grid_pinpoints = {{336, 672}, {672, 336}, {672, 672}, {1008, 336}, {336, 1008}};
  if (const json* list = fields.find("image_grid_pinpoints")) {
    out.grid_pinpoints.clear();
    for (const json& pair : list->is_array() ? *list : json::array()) {
      if (!pair.is_array() || pair.size() != 2 || !pair[0].is_number_integer() || !pair[1].is_number_integer() ||
          pair[0] < 1 || pair[1] < 1 || pair[0] > kMaxSide || pair[1] > kMaxSide)
        fields.fail("image_grid_pinpoints", "pairs [height, width] up to " + std::to_string(kMaxSide));
      out.grid_pinpoints.push_back({pair[0].get<int>(), pair[1].get<int>()});
    }
    if (out.grid_pinpoints.empty()) fields.fail("image_grid_pinpoints", "a list of pairs [height, width]");
  }
  for (const auto& canvas : out.grid_pinpoints)
    if (canvas.height % height != 0 || canvas.width % width != 0)
      fields.fail("image_grid_pinpoints", "multiples of crop_size, " + std::to_string(height));
}

ImageProcessor read(const json& config, const std::string& file) {
  const JsonFields fields(config, file);
  const std::string type = read_type(fields);
  ImageProcessor out;
  // LLaVA-NeXT's do_pad is about batches: with it, pictures of fewer tiles are filled up with zeros.
  if (type != kAnyResolution) out.do_pad = fields.boolean("do_pad").value_or(out.do_pad);
  out.do_resize = fields.boolean("do_resize").value_or(out.do_resize);
  out.do_center_crop = fields.boolean("do_center_crop").value_or(out.do_center_crop);
  out.do_rescale = fields.boolean("do_rescale").value_or(out.do_rescale);
  out.do_normalize = fields.boolean("do_normalize").value_or(out.do_normalize);
  if (out.do_pad && type != "LlavaImageProcessor") fields.fail("do_pad", "false for " + type);
  if (out.do_resize) check_bicubic(fields);
  read_size(fields, file, out);
  read_crop_size(fields, file, out);
  if (type == kAnyResolution) read_any_resolution(fields, out);
  out.rescale_factor = fields.number("rescale_factor").value_or(out.rescale_factor);
  read_channels(fields, "image_mean", out.image_mean);
  read_channels(fields, "image_std", out.image_std);
  if (std::count(out.image_std.begin(), out.image_std.end(), 0.0) > 0) fields.fail("image_std", "numbers other than 0");
  return out;
}

Color mean_color(const std::array<double, 3>& mean) {
  Color color;
  std::transform(mean.begin(), mean.end(), color.begin(),
                 [](double m) { return static_cast<uint8_t>(std::clamp(m * 255.0, 0.0, 255.0)); });
  return color;
}

struct Extent {  // 64 bits: a resized narrow picture may be too large to be made, which the crop decides
  int64_t width, height;
};

Extent resized_extent(const ImageProcessor& processor, Extent in) {
  if (!processor.do_resize) return in;
  if (!processor.shortest_edge) return {processor.size.width, processor.size.height};
  const int64_t edge = *processor.shortest_edge;
  const int64_t longer = edge * std::max(in.width, in.height) / std::min(in.width, in.height);
  return in.width <= in.height ? Extent{edge, longer} : Extent{longer, edge};
}

[[noreturn]] void fail_too_large(const Image& image, int64_t width, int64_t height) {
  throw Error("image of " + std::to_string(image.width) + "x" + std::to_string(image.height) + " pixels becomes " +
              std::to_string(width) + "x" + std::to_string(height) + " in preprocessing, at most " +
              std::to_string(kMaxImagePixels) + " pixels are made");
}

// Resizes and crops in one go where the crop lies inside, so that a narrow picture does not become a huge one on the
// way.
Image resize_and_crop(const ImageProcessor& processor, const Image& image) {
  const auto [width, height] = resized_extent(processor, {image.width, image.height});
  if (std::max(width, height) > std::numeric_limits<int>::max()) fail_too_large(image, width, height);
  const auto [crop_height, crop_width] = processor.crop_size;
  if (processor.do_center_crop && width >= crop_width && height >= crop_height) {
    const Window window = center_window(static_cast<int>(width), static_cast<int>(height), crop_width, crop_height);
    return resize_bicubic(image, static_cast<int>(width), static_cast<int>(height), window);
  }
  if (width * height > kMaxImagePixels) fail_too_large(image, width, height);
  const Image resized = resize_bicubic(image, static_cast<int>(width), static_cast<int>(height));
  return processor.do_center_crop ? center_crop(resized, crop_width, crop_height) : resized;
}

Image single_crop(const ImageProcessor& processor, const Image& image) {
  const bool pad = processor.do_pad && image.width != image.height;
  const int64_t side = std::max(image.width, image.height);
  if (pad && side * side > kMaxImagePixels) fail_too_large(image, side, side);
  return pad ? resize_and_crop(processor, pad_to_square(image, mean_color(processor.image_mean)))
             : resize_and_crop(processor, image);
}

// The full view ignores the aspect ratio.
std::vector<Image> full_view_and_tiles(const ImageProcessor& processor, const Image& image) {
  const int side = processor.crop_size.height;
  const Tiling t = tiling_of(processor, image.width, image.height);
  std::vector<Image> crops = {resize_bicubic(image, side, side)};
  const Image scaled = resize_bicubic(image, t.width, t.height);
  for (int row = 0; row < t.rows; ++row)
    for (int col = 0; col < t.cols; ++col)
      crops.push_back(crop(scaled, {col * side - t.left, row * side - t.top, side, side}));
  return crops;
}

// The canvas on which the picture keeps most of its pixels; among equals the one with the least black, then the first.
ImageProcessor::Size best_canvas(const std::vector<ImageProcessor::Size>& canvases, int width, int height) {
  ImageProcessor::Size best = canvases.front();
  int64_t most_kept = 0, least_wasted = std::numeric_limits<int64_t>::max();
  for (const ImageProcessor::Size& canvas : canvases) {
    const double scale =
        std::min(static_cast<double>(canvas.width) / width, static_cast<double>(canvas.height) / height);
    const auto scaled_width = static_cast<int64_t>(width * scale), scaled_height = static_cast<int64_t>(height * scale);
    const int64_t kept = std::min(scaled_width * scaled_height, int64_t{1} * width * height);
    const int64_t wasted = int64_t{1} * canvas.width * canvas.height - kept;
    if (kept < most_kept || (kept == most_kept && wasted >= least_wasted)) continue;
    most_kept = kept;
    least_wasted = wasted;
    best = canvas;
  }
  return best;
}

PixelBox single_crop_box(const ImageProcessor& processor, int width, int height) {
  const int64_t side = std::max(width, height);
  const Extent padded = processor.do_pad ? Extent{side, side} : Extent{width, height};
  const Extent resized = resized_extent(processor, padded);
  const auto [crop_height, crop_width] = processor.crop_size;
  const Extent shown = processor.do_center_crop ? Extent{crop_width, crop_height} : resized;
  // One axis: where the crop begins among the resized pixels, scaled back, less what padding put in front.
  const auto interval = [](int64_t original, int64_t with_padding, int64_t out, int64_t kept) {
    const double scale = static_cast<double>(with_padding) / static_cast<double>(out);
    const double begin = std::floor(static_cast<double>(out - kept) / 2.0);
    const int64_t in_front = (with_padding - original) / 2;
    const auto padding = static_cast<double>(in_front);
    return std::pair{begin * scale - padding, (begin + static_cast<double>(kept)) * scale - padding};
  };
  const auto [x0, x1] = interval(width, padded.width, resized.width, shown.width);
  const auto [y0, y1] = interval(height, padded.height, resized.height, shown.height);
  return {x0, y0, x1, y1};
}

}  // namespace

ImageProcessor ImageProcessor::load(const std::filesystem::path& folder) {
  std::string file;
  const json config = read_processor_config(folder, file);
  return read(config, file);
}

Tiling tiling_of(const ImageProcessor& processor, int width, int height) {
  const ImageProcessor::Size canvas = best_canvas(processor.grid_pinpoints, width, height);
  const double across = static_cast<double>(canvas.width) / width, along = static_cast<double>(canvas.height) / height;
  Tiling t{.rows = canvas.height / processor.crop_size.height,
           .cols = canvas.width / processor.crop_size.width,
           .width = canvas.width,
           .height = canvas.height,
           .left = 0,
           .top = 0};
  if (across < along) {
    t.height = std::min(static_cast<int>(std::ceil(height * across)), canvas.height);
  } else {
    t.width = std::min(static_cast<int>(std::ceil(width * along)), canvas.width);
  }
  t.left = (canvas.width - t.width) / 2;
  t.top = (canvas.height - t.height) / 2;
  return t;
}

PixelValues preprocess(const ImageProcessor& processor, const Image& image) {
  const std::vector<Image> crops = processor.grid_pinpoints.empty() ? std::vector{single_crop(processor, image)}
                                                                    : full_view_and_tiles(processor, image);
  Normalization normalization;
  if (processor.do_rescale) normalization.scale = processor.rescale_factor;
  if (processor.do_normalize) {
    std::copy(processor.image_mean.begin(), processor.image_mean.end(), normalization.mean.begin());
    std::copy(processor.image_std.begin(), processor.image_std.end(), normalization.std.begin());
  }
  PixelValues out{static_cast<int>(crops.size()), 3, crops[0].height, crops[0].width, {}};
  out.values.reserve(crops.size() * crops[0].rgb.size());
  for (const Image& crop : crops) normalize(crop, normalization, out.values);
  return out;
}

std::vector<PixelBox> crop_boxes(const ImageProcessor& processor, int width, int height) {
  if (processor.grid_pinpoints.empty()) return {single_crop_box(processor, width, height)};
  const Tiling t = tiling_of(processor, width, height);
  const double across = static_cast<double>(width) / t.width, along = static_cast<double>(height) / t.height;
  const int side = processor.crop_size.height;
  std::vector<PixelBox> boxes = {{0, 0, static_cast<double>(width), static_cast<double>(height)}};
  for (int row = 0; row < t.rows; ++row)
    for (int col = 0; col < t.cols; ++col)
      boxes.push_back({(col * side - t.left) * across, (row * side - t.top) * along,
                       ((col + 1) * side - t.left) * across, ((row + 1) * side - t.top) * along});
  return boxes;
}

}  // namespace espalier
