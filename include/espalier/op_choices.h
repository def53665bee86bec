// SPDX-License-Identifier: Apache-2.0
// What ops let their callers choose. No tensors here: kernels on raw pointers read it too.
#pragma once

#include <cstdint>

namespace espalier::ops {

// How the attention of several heads becomes one number, before rows are averaged; kEach: it does not.
enum class HeadReduction : uint8_t { kMean, kMax, kEach };

// How a cosine becomes the similarity in [0, 1] that coverage sums: (1 + c) / 2; max(c, 0); (c - min) / (max - min)
// over the block's matrix (0.5 where the range is below 1e-12).
enum class Similarity : uint8_t { kAffine, kClamp, kMinmax };

// How far apart two rows are: 1 - cosine (1 where a norm is below 1e-12); sum of |x - y|; root of the sum of (x - y)².
enum class Distance : uint8_t { kCosine, kL1, kL2 };

}  // namespace espalier::ops
