// SPDX-License-Identifier: Apache-2.0
// What someone may have meant who wrote a word that is not known.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace espalier {

// " (did you mean X?)" with the known word that differs in the fewest letters (one left out, put in, replaced, or two
// exchanged); nothing where more than a third of the word would have to change.
std::string did_you_mean(std::string_view word, std::span<const std::string_view> known);

}  // namespace espalier
