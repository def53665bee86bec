// SPDX-License-Identifier: Apache-2.0
// What Espalier throws when the caller's input cannot be used: a file, a prompt, a policy spec, an option.
// Everything else that can go wrong while running (out of memory, a CUDA failure) stays what libtorch or
// the standard library throws. The command line ends with 2 for the first and with 1 for the second.
#pragma once

#include <stdexcept>
#include <string>

namespace espalier {

// One line for a person: which file or option, which field, what was expected and what came.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message) : std::runtime_error(message) {}
};

}  // namespace espalier
