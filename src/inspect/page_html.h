// SPDX-License-Identifier: Apache-2.0
// page.html as text; the build makes page_html.cpp of it.
#pragma once

#include <string_view>

namespace espalier {

extern const std::string_view kPageHtml;

}  // namespace espalier
