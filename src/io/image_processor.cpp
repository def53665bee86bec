// SPDX-License-Identifier: Apache-2.0
#include "io/image_processor.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <system_error>
#include <utility>

#include "espalier/error.h"
#include "io/image_transforms.h"
#include "io/json_file.h"

namespace espalier {
namespace {

using nlohmann::json;

constexpr int kMaxSide = 16384;  // of what a config may ask for
constexpr std::array<const char*, 6> kFilters = {"nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"};
constexpr int64_t kBicubic = 3;

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

void read_channels(const JsonFields& fields, const char* key, std::array<double, 3>& out) {
  const json* value = fields.find(key);
  if (!value) return;
  if (value->is_number()) {
    out.fill(*fields.number(key));
    return;
  }
  const std::vector<double> numbers = *fields.numbers(key);
  if (numbers.size() != out.size()) fields.fail(key, "three numbers");
  std::copy(numbers.begin(), numbers.end(), out.begin());
}

// The class that the file names, without the suffix that says on which library it runs.
std::string read_type(const JsonFields& fields) {
  std::string type = fields.string("image_processor_type").value_or("");
  if (type.empty() && fields.string("feature_extractor_type") == "CLIPFeatureExtractor") type = "CLIPImageProcessor";
  for (const std::string_view suffix : {"Fast", "Pil"}) {
    if (type.ends_with(suffix)) type.resize(type.size() - suffix.size());
  }
  if (type == "CLIPImageProcessor" || type == "LlavaImageProcessor") return type;
  fields.fail("image_processor_type", "CLIPImageProcessor or LlavaImageProcessor");
}

void check_filter(const JsonFields& fields) {
  const int64_t filter = fields.integer("resample").value_or(kBicubic);
  if (filter == kBicubic) return;
  const bool known = filter >= 0 && filter < static_cast<int64_t>(kFilters.size());
  const std::string name = known ? std::string(" (this is ") + kFilters[static_cast<size_t>(filter)] + ")" : "";
  fields.fail("resample", "3, bicubic" + name);
}

ImageProcessor read(const json& config, const std::string& file) {
  const JsonFields fields(config, file);
  const std::string type = read_type(fields);
  ImageProcessor out;
  out.do_pad = fields.boolean("do_pad").value_or(out.do_pad);
  out.do_resize = fields.boolean("do_resize").value_or(out.do_resize);
  out.do_center_crop = fields.boolean("do_center_crop").value_or(out.do_center_crop);
  out.do_rescale = fields.boolean("do_rescale").value_or(out.do_rescale);
  out.do_normalize = fields.boolean("do_normalize").value_or(out.do_normalize);
  if (out.do_pad && type != "LlavaImageProcessor") fields.fail("do_pad", "false for " + type);
  if (out.do_resize) check_filter(fields);
  read_size(fields, file, out);
  read_crop_size(fields, file, out);
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

}  // namespace

ImageProcessor ImageProcessor::load(const std::filesystem::path& folder) {
  const std::filesystem::path combined = folder / "processor_config.json";
  std::error_code ignored;
  if (std::filesystem::exists(combined, ignored)) {
    const json config = read_json_file(combined);
    const std::string file = combined.string();
    if (const json* nested = JsonFields(config, file).find("image_processor")) return read(*nested, file);
  }
  const std::filesystem::path file = folder / "preprocessor_config.json";
  return read(read_json_file(file), file.string());
}

PixelValues preprocess(const ImageProcessor& processor, const Image& image) {
  const bool pad = processor.do_pad && image.width != image.height;
  const int64_t side = std::max(image.width, image.height);
  if (pad && side * side > kMaxImagePixels) fail_too_large(image, side, side);
  const Image ready = pad ? resize_and_crop(processor, pad_to_square(image, mean_color(processor.image_mean)))
                          : resize_and_crop(processor, image);
  Normalization normalization;
  if (processor.do_rescale) normalization.scale = processor.rescale_factor;
  if (processor.do_normalize) {
    std::copy(processor.image_mean.begin(), processor.image_mean.end(), normalization.mean.begin());
    std::copy(processor.image_std.begin(), processor.image_std.end(), normalization.std.begin());
  }
  PixelValues out{1, 3, ready.height, ready.width, {}};
  normalize(ready, normalization, out.values);
  return out;
}

SourceBox source_box(const ImageProcessor& processor, int width, int height) {
  const int64_t side = std::max(width, height);
  const Extent padded = processor.do_pad ? Extent{side, side} : Extent{width, height};
  const Extent resized = resized_extent(processor, padded);
  const auto [crop_height, crop_width] = processor.crop_size;
  const Extent shown = processor.do_center_crop ? Extent{crop_width, crop_height} : resized;
  // One axis: where the crop begins among the resized pixels, scaled back, less what padding put in front.
  const auto interval = [](int64_t original, int64_t with_padding, int64_t out, int64_t kept) {
    const double scale = static_cast<double>(with_padding) / static_cast<double>(out);
    const double begin = std::floor(static_cast<double>(out - kept) / 2.0);
    const auto padding = static_cast<double>((with_padding - original) / 2);
    return std::pair{begin * scale - padding, (begin + static_cast<double>(kept)) * scale - padding};
  };
  const auto [x0, x1] = interval(width, padded.width, resized.width, shown.width);
  const auto [y0, y1] = interval(height, padded.height, resized.height, shown.height);
  return {x0, y0, x1, y1};
}

}  // namespace espalier
