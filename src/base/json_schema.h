// SPDX-License-Identifier: Apache-2.0
// The number that every JSON output carries as "schema" (docs/formats.md). It rises when a field changes its meaning or
// goes; fields that come beside others do not raise it.
#pragma once

namespace espalier {

inline constexpr int kJsonSchema = 1;

}  // namespace espalier
