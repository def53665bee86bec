// SPDX-License-Identifier: Apache-2.0
// The bytes behind `data:image/…;base64,…`.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace espalier::serve {

// RFC 4648, with or without padding at the end. Throws ApiError naming the first place that is none of it.
std::vector<std::byte> read_base64(std::string_view text, const std::string& param);
// Throws ApiError for a URI that is not of a picture in base64.
std::vector<std::byte> read_data_uri(std::string_view uri, const std::string& param);

}  // namespace espalier::serve
