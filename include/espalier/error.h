// SPDX-License-Identifier: Apache-2.0
// What Espalier throws when the caller's input cannot be used: a file, a prompt, a policy spec, an option; and when
// memory ends. Everything else that can go wrong while running (a CUDA failure) stays what libtorch or the standard
// library throws. The command line ends with 2 for the first and with 1 for all others.
#pragma once

#include <new>
#include <stdexcept>
#include <string>

namespace espalier {

// One line for a person: which file or option, which field, what was expected and what came. Control characters of a
// message, as names in foreign files may have them, are escaped.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message);
};

// Memory of the host or of the device has run out. The request that needed it ends with this; the engine answers the
// next.
class OutOfMemory : public std::bad_alloc {
 public:
  const char* what() const noexcept override {
    return "out of memory: a shorter prompt, smaller batches or more memory are needed";
  }
};

}  // namespace espalier
