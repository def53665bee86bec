// SPDX-License-Identifier: Apache-2.0
// Base64 (RFC 4648, with padding), for pictures inside of pages.
#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace espalier {

std::string base64(std::span<const std::byte> bytes);

}  // namespace espalier
