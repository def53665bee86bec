// SPDX-License-Identifier: Apache-2.0
// What tests do not ask of a program that a sanitizer watches: it is many times slower, and its memory is not its own.
#pragma once

namespace espalier::test {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kIsSanitized = true;
#else
inline constexpr bool kIsSanitized = false;
#endif

// How many times as long it may take.
inline constexpr double kPatience = kIsSanitized ? 20 : 1;

}  // namespace espalier::test
