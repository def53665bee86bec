// SPDX-License-Identifier: Apache-2.0
// From a picture to the pixel values that a CLIP vision tower reads, as the checkpoint's preprocessor_config.json says
// (CLIPImageProcessor, LlavaImageProcessor and LlavaNextImageProcessor, with the arithmetic of Transformers' PIL
// backend).
#pragma once

#include <array>
#include <filesystem>
#include <optional>
#include <vector>

#include "espalier/image.h"

namespace espalier {

struct ImageProcessor {
  struct Size {
    int height, width;
    bool operator==(const Size&) const = default;
  };

  // Defaults are those of the classes, for keys that the file leaves out.
  bool do_pad = false;  // to a square in the mean colour, before resizing
  bool do_resize = true;
  std::optional<int> shortest_edge = 224;  // keeps the aspect ratio; without it `size` ignores it
  Size size = {224, 224};
  bool do_center_crop = true;
  Size crop_size = {224, 224};
  bool do_rescale = true;
  double rescale_factor = 1.0 / 255.0;
  bool do_normalize = true;
  std::array<double, 3> image_mean = {0.48145466, 0.4578275, 0.40821073};
  std::array<double, 3> image_std = {0.26862954, 0.26130258, 0.27577711};
  // Any resolution (LLaVA-NeXT): canvases that tiles of crop_size fill, the full view before them. Empty: one crop.
  std::vector<Size> grid_pinpoints;

  // From processor_config.json where it holds an "image_processor" (5.x saves), else preprocessor_config.json. Throws
  // Error naming file and field for what is missing, malformed or not supported.
  static ImageProcessor load(const std::filesystem::path& folder);
};

// [crops, channels, height, width]; crop 0 of an any-resolution picture is the full view, 1, 2, … the tiles row by row.
struct PixelValues {
  int crops = 0, channels = 0, height = 0, width = 0;
  std::vector<float> values;
};

PixelValues preprocess(const ImageProcessor& processor, const Image& image);

// How the tiles of an any-resolution processor show a width x height picture: scaled with its aspect ratio, in the
// middle of a black canvas of rows x cols tiles.
struct Tiling {
  int rows, cols;
  int width, height;  // of the scaled picture
  int left, top;      // its place on the canvas
};
Tiling tiling_of(const ImageProcessor& processor, int width, int height);

// The part of a width x height picture that each crop of its pixel values shows, in pixels of that picture.
std::vector<PixelBox> crop_boxes(const ImageProcessor& processor, int width, int height);

}  // namespace espalier
