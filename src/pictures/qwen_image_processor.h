// SPDX-License-Identifier: Apache-2.0
// From a picture of any size to the flattened patches that the towers of Qwen2-VL and Qwen2.5-VL read, as the
// checkpoint's preprocessor_config.json says (Qwen2VLImageProcessor, with the arithmetic of Transformers' PIL backend).
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <vector>

#include "espalier/image.h"

namespace espalier {

struct QwenImageProcessor {
  // Defaults are those of the class, for keys that the file leaves out.
  bool do_resize = true;
  int64_t min_pixels = 56 * 56;  // of the resized picture
  int64_t max_pixels = 28 * 28 * 1280;
  int patch_size = 14;
  int temporal_patch_size = 2;  // a single picture stands in every frame of a patch
  int merge_size = 2;           // merge_size x merge_size patches become one image token
  bool do_rescale = true;
  double rescale_factor = 1.0 / 255.0;
  bool do_normalize = true;
  std::array<double, 3> image_mean = {0.48145466, 0.4578275, 0.40821073};
  std::array<double, 3> image_std = {0.26862954, 0.26130258, 0.27577711};

  // Throws Error naming file and field for what is missing, malformed or not supported.
  static QwenImageProcessor load(const std::filesystem::path& folder);
};

// In patches; both sides are multiples of merge_size.
struct PatchGrid {
  int rows, cols;
};

// Throws Error for a picture whose sides differ more than 200 : 1.
PatchGrid patch_grid(const QwenImageProcessor& processor, int width, int height);

// [rows·cols, 3·temporal_patch_size·patch_size²]. Cells of merge_size x merge_size patches row by row, inside a cell
// its patches row by row, inside a patch channel, frame, row, column.
struct PatchValues {
  PatchGrid grid;
  int width;  // of a row
  std::vector<float> values;
};

// The picture scaled to `grid`, by default its patch_grid.
PatchValues preprocess(const QwenImageProcessor& processor, const Image& image, PatchGrid grid);
PatchValues preprocess(const QwenImageProcessor& processor, const Image& image);

}  // namespace espalier
