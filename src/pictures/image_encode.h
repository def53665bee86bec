// SPDX-License-Identifier: Apache-2.0
// A picture as the bytes of a file, the way back from decode_image. Lossless.
#pragma once

#include <cstddef>
#include <vector>

#include "espalier/image.h"

namespace espalier {

// An 8-bit RGB PNG. Throws Error for a picture without pixels or with another number of bytes than its size asks for.
std::vector<std::byte> encode_png(const Image& image);

}  // namespace espalier
