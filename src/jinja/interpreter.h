// SPDX-License-Identifier: Apache-2.0
// Runs a parsed chat template.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "jinja/parser.h"

namespace espalier::jinja {

// Called behind each turn of each `for` with the item and the part of the output, [begin, end), that the turn wrote.
using OnIteration = std::function<void(const Value& item, size_t begin, size_t end)>;

// Throws Error "NAME: line N: …" where Jinja would raise, and "NAME: …" with the template's own words for
// raise_exception.
std::string run(const std::vector<Statement>& program, const std::string& name, const Dict& variables,
                const OnIteration& on_iteration);

}  // namespace espalier::jinja
