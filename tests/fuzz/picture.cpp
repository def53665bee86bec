// SPDX-License-Identifier: Apache-2.0
#include <span>

#include "espalier/image.h"
#include "tests/fuzz/scratch.h"
#include "tests/fuzz/targets.h"

namespace espalier::fuzz {

void run_picture(std::string_view file) {
  constexpr int64_t kMostPixels = 1 << 20;  // large pictures take time and show nothing new
  may_refuse([&] {
    const Image image = decode_image(std::as_bytes(std::span(file)), "picture", kMostPixels);
    check(image);
    expect(int64_t{image.width} * image.height <= kMostPixels, "no picture is larger than allowed");
  });
}

}  // namespace espalier::fuzz
