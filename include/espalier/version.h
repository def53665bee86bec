// SPDX-License-Identifier: Apache-2.0
// Which Espalier a program runs with.
#pragma once

namespace espalier {

// "major.minor.patch" of the library that is loaded, which lives as long as the program. Any thread may ask.
const char* version();

}  // namespace espalier
