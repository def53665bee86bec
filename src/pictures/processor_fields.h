// SPDX-License-Identifier: Apache-2.0
// What the configurations of all image processors have in common: where they lie, the class they name, and how they
// write a filter and numbers per channel. Which fields a processor has is not known here.
#pragma once

#include <array>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "base/json_fields.h"

namespace espalier {

// The processor's object and the file it stands in: processor_config.json where that holds an "image_processor" (5.x
// saves), else preprocessor_config.json.
nlohmann::json read_processor_config(const std::filesystem::path& folder, std::string& file);

// The class that the file names, without the suffix that says on which library it runs; "" when it names none.
std::string processor_type(const JsonFields& fields);

// Throws Error unless `resample` is bicubic or missing.
void check_bicubic(const JsonFields& fields);

// One number for all channels, or one each. `out` stays as it is when the field is missing.
void read_channels(const JsonFields& fields, const char* key, std::array<double, 3>& out);

}  // namespace espalier
