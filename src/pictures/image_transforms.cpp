// SPDX-License-Identifier: Apache-2.0
#include "pictures/image_transforms.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>

#include "espalier/error.h"

namespace espalier {
namespace {

constexpr int kWeightBits = 22;  // 8 bits of pixel and 2 of headroom for the overshoot leave 22 of 32

// For each output index of one axis: the input indices it reads and their fixed-point weights.
struct Axis {
  std::vector<int> begin;       // [outputs]
  std::vector<int> count;       // [outputs]
  std::vector<int32_t> weight;  // [outputs, stride]
  int stride = 0;

  int first() const { return begin.front(); }  // of the inputs read by any output
  int extent() const { return begin.back() + count.back() - begin.front(); }
  const int32_t* weights_of(int output) const { return weight.data() + size_t{1} * output * stride; }
};

double bicubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
  if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
  return 0.0;
}

// Weights of outputs [first, first + outputs) when `in` samples become `out`. When shrinking, the filter is widened by
// the scale, which is the antialiasing.
Axis make_axis(int in, int out, int first, int outputs) {
  const double scale = static_cast<double>(in) / out;
  const double filter_scale = std::max(scale, 1.0);
  const double support = 2.0 * filter_scale;
  Axis axis;
  axis.stride = std::min(static_cast<int>(std::ceil(support)) * 2 + 1, in);
  axis.weight.resize(size_t{1} * outputs * axis.stride);
  std::vector<double> weights(axis.stride);
  for (int o = 0; o < outputs; ++o) {
    const double center = (first + o + 0.5) * scale;
    const int begin = std::max(static_cast<int>(std::floor(center - support + 0.5)), 0);
    const int count = std::min(static_cast<int>(std::floor(center + support + 0.5)), in) - begin;
    double sum = 0.0;
    for (int i = 0; i < count; ++i) {
      weights[i] = bicubic((i + begin - center + 0.5) * (1.0 / filter_scale));
      sum += weights[i];
    }
    for (int i = 0; i < count; ++i) {
      const double fixed = weights[i] / sum * (1 << kWeightBits);
      axis.weight[size_t{1} * o * axis.stride + i] = static_cast<int32_t>(fixed < 0 ? fixed - 0.5 : fixed + 0.5);
    }
    axis.begin.push_back(begin);
    axis.count.push_back(count);
  }
  return axis;
}

uint8_t round_to_byte(int32_t sum) {
  return static_cast<uint8_t>(std::clamp(sum >> kWeightBits, 0, 255));  // sums start at one half
}

constexpr int32_t kHalf = 1 << (kWeightBits - 1);

// Every row of `image`, resampled; column 0 of `image` is input `first` of the axis.
Image resample_rows(const Image& image, const Axis& axis, int first) {
  Image out{static_cast<int>(axis.begin.size()), image.height, {}};
  out.rgb.resize(size_t{3} * out.width * out.height);
  uint8_t* to = out.rgb.data();
  for (int y = 0; y < out.height; ++y) {
    const uint8_t* row = image.rgb.data() + size_t{3} * image.width * y;
    for (int x = 0; x < out.width; ++x, to += 3) {
      const uint8_t* pixel = row + size_t{3} * (axis.begin[x] - first);
      const int32_t* weight = axis.weights_of(x);
      int32_t red = kHalf, green = kHalf, blue = kHalf;
      for (int i = 0; i < axis.count[x]; ++i, pixel += 3) {
        red += pixel[0] * weight[i];
        green += pixel[1] * weight[i];
        blue += pixel[2] * weight[i];
      }
      to[0] = round_to_byte(red);
      to[1] = round_to_byte(green);
      to[2] = round_to_byte(blue);
    }
  }
  return out;
}

// Every column of `image`, resampled; row 0 of `image` is input `first` of the axis.
Image resample_columns(const Image& image, const Axis& axis, int first) {
  Image out{image.width, static_cast<int>(axis.begin.size()), {}};
  const size_t row_bytes = size_t{3} * image.width;
  out.rgb.resize(row_bytes * out.height);
  std::vector<int32_t> sums(row_bytes);
  for (int y = 0; y < out.height; ++y) {
    std::fill(sums.begin(), sums.end(), kHalf);
    const uint8_t* row = image.rgb.data() + row_bytes * (axis.begin[y] - first);
    for (int i = 0; i < axis.count[y]; ++i, row += row_bytes) {
      const int32_t weight = axis.weights_of(y)[i];
      for (size_t x = 0; x < row_bytes; ++x) sums[x] += row[x] * weight;
    }
    std::transform(sums.begin(), sums.end(), out.rgb.data() + row_bytes * y, round_to_byte);
  }
  return out;
}

}  // namespace

Image resize_bicubic(const Image& image, int width, int height) {
  return resize_bicubic(image, width, height, {0, 0, width, height});
}

Image resize_bicubic(const Image& image, int width, int height, const Window& window) {
  // An axis that keeps its size is not filtered.
  std::optional<Axis> across, along;
  Window read = window;  // what the window needs of the input
  if (width != image.width) {
    across = make_axis(image.width, width, window.left, window.width);
    read.left = across->first(), read.width = across->extent();
  }
  if (height != image.height) {
    along = make_axis(image.height, height, window.top, window.height);
    read.top = along->first(), read.height = along->extent();
  }
  // Pillow turns its order round for very tall pictures that become lower, and the rounding between the passes shows
  // it.
  const bool columns_first = image.height > int64_t{100} * image.width && height < image.height;
  const bool all = read.width == image.width && read.height == image.height;
  Image out;
  const Image* from = all ? &image : &(out = crop(image, read));
  if (along && columns_first) from = &(out = resample_columns(*from, *along, read.top));
  if (across) from = &(out = resample_rows(*from, *across, read.left));
  if (along && !columns_first) from = &(out = resample_columns(*from, *along, read.top));
  if (from == &image) return image;
  return out;
}

Window center_window(int width, int height, int crop_width, int crop_height) {
  const auto floor_half = [](int n) { return n >= 0 ? n / 2 : -((1 - n) / 2); };  // as Python's // 2
  return {floor_half(width - crop_width), floor_half(height - crop_height), crop_width, crop_height};
}

Image crop(const Image& image, const Window& window) {
  Image out{window.width, window.height, std::vector<uint8_t>(size_t{3} * window.width * window.height)};
  const int begin = std::max(window.left, 0);
  const int end = std::min(window.left + window.width, image.width);
  if (begin >= end) return out;
  for (int y = std::max(window.top, 0); y < std::min(window.top + window.height, image.height); ++y) {
    uint8_t* to = out.rgb.data() + size_t{3} * (size_t{1} * (y - window.top) * window.width + (begin - window.left));
    std::memcpy(to, image.rgb.data() + size_t{3} * (size_t{1} * y * image.width + begin), size_t{3} * (end - begin));
  }
  return out;
}

Image center_crop(const Image& image, int width, int height) {
  return crop(image, center_window(image.width, image.height, width, height));
}

Image pad_to_square(const Image& image, const Color& color) {
  const int side = std::max(image.width, image.height);
  Image out{side, side, {}};
  out.rgb.resize(size_t{3} * side * side);
  for (size_t i = 0; i < out.rgb.size(); i += 3) std::copy(color.begin(), color.end(), out.rgb.begin() + i);
  const int left = (side - image.width) / 2, top = (side - image.height) / 2;
  for (int y = 0; y < image.height; ++y) {
    std::memcpy(out.rgb.data() + size_t{3} * (size_t{1} * (top + y) * side + left),
                image.rgb.data() + size_t{3} * image.width * y, size_t{3} * image.width);
  }
  return out;
}

void normalize(const Image& image, const Normalization& normalization, std::vector<float>& out) {
  const size_t pixels = size_t{1} * image.width * image.height;
  out.reserve(out.size() + 3 * pixels);
  for (size_t c = 0; c < 3; ++c) {
    std::array<float, 256> value;
    for (int level = 0; level < 256; ++level) {
      const auto scaled = static_cast<float>(level * normalization.scale);
      value[level] = (scaled - normalization.mean[c]) / normalization.std[c];
    }
    for (size_t i = 0; i < pixels; ++i) out.push_back(value[image.rgb[3 * i + c]]);
  }
}

}  // namespace espalier
