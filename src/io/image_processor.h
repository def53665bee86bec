// SPDX-License-Identifier: Apache-2.0
// From a picture to the pixel values that a CLIP vision tower reads, as the checkpoint's preprocessor_config.json says
// (CLIPImageProcessor and LlavaImageProcessor, with the arithmetic of Transformers' PIL backend).
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

  // From processor_config.json where it holds an "image_processor" (5.x saves), else preprocessor_config.json. Throws
  // Error naming file and field for what is missing, malformed or not supported.
  static ImageProcessor load(const std::filesystem::path& folder);
};

// [crops, channels, height, width]. Any-resolution processors make several crops of one picture, this one makes one.
struct PixelValues {
  int crops = 0, channels = 0, height = 0, width = 0;
  std::vector<float> values;
};

PixelValues preprocess(const ImageProcessor& processor, const Image& image);

// The part of a width x height picture that its pixel values show, in pixels of that picture. It reaches over the edges
// where the processor pads.
struct SourceBox {
  double x0, y0, x1, y1;
};
SourceBox source_box(const ImageProcessor& processor, int width, int height);

}  // namespace espalier
