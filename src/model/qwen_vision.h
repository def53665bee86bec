// SPDX-License-Identifier: Apache-2.0
// Qwen2.5-VL's vision transformer: the patches of one picture, of any size, to what the projector (the merger's MLP)
// reads for each image token. Attention runs inside windows, in a few layers over the whole picture; pictures never see
// each other.
#pragma once

#include <ATen/core/Tensor.h>

#include "model/config.h"
#include "model/vision_tower.h"
#include "model/weights.h"

namespace espalier {

// patches float32 [rows·cols, 3·t·p·p] in the processor's order: cells of merge_size x merge_size patches row by row,
// inside a cell its patches row by row. rows and cols count patches.
// -> [cells, merge_size²·d]: each cell's normed patches behind each other, cells row by row.
// `observe` sees every layer with tokens in the order of `patches`, as one crop without a class token.
at::Tensor run_qwen_vision(const VisionConfig& config, const QwenVisionWeights& weights, const at::Tensor& patches,
                           int64_t rows, int64_t cols, const VisionObserver& observe = {});

}  // namespace espalier
