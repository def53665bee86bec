// SPDX-License-Identifier: Apache-2.0
// What a client sent, as it may stand in a log: one line, printable ASCII, not longer than needed.
#pragma once

#include <string>
#include <string_view>

namespace espalier::serve {

// In quotes; quotes, backslashes and everything that is not printable ASCII become \" \\ and \xNN. Behind 200 bytes it
// is cut.
std::string log_text(std::string_view text);

}  // namespace espalier::serve
