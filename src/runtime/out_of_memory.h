// SPDX-License-Identifier: Apache-2.0
// Memory that ends, whoever notices it first (the allocator of libtorch, the standard library, CUDA), comes to callers
// as one thing: OutOfMemory (error.h).
#pragma once

#include <exception>

namespace espalier {

bool is_out_of_memory(const std::exception& error);

// Throws what the pointer holds; OutOfMemory where that says that memory has ended.
[[noreturn]] void rethrow_in_our_words(const std::exception_ptr& error);

template <typename Work>
auto in_our_words(const Work& work) {
  try {
    return work();
  } catch (...) {
    rethrow_in_our_words(std::current_exception());
  }
}

}  // namespace espalier
