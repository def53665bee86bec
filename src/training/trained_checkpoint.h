// SPDX-License-Identifier: Apache-2.0
// A checkpoint folder again, with some of its weights replaced by trained ones: same files, names, shards and dtypes.
#pragma once

#include <filesystem>

#include "base/safetensors.h"
#include "training/parameters.h"

namespace espalier {

// Of weights: F32, F16 or BF16.
at::ScalarType scalar_type_of(Dtype dtype);

// `parameters` by canonical name (model/checkpoint.h); all other tensors and files are copied. `to` appears whole, or
// stays as it was.
void write_trained_checkpoint(const std::filesystem::path& from, const std::filesystem::path& to,
                              const Parameters& parameters);

}  // namespace espalier
