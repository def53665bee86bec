// SPDX-License-Identifier: Apache-2.0
#include "runtime/out_of_memory.h"

#include <c10/util/Exception.h>
#include <oneapi/dnnl/dnnl_common.hpp>

#include <cerrno>
#include <new>
#include <string_view>
#include <system_error>

#include "espalier/error.h"

namespace espalier {

using namespace std::string_view_literals;

bool is_out_of_memory(const std::exception& error) {
  if (dynamic_cast<const std::bad_alloc*>(&error) || dynamic_cast<const c10::OutOfMemoryError*>(&error)) return true;
  if (const auto* system = dynamic_cast<const std::system_error*>(&error))  // of a thread that cannot be made
    return system->code().value() == EAGAIN || system->code().value() == ENOMEM;
  // oneDNN's exception passes through libtorch as it is. What it cannot compute it refuses with the primitive's
  // descriptor; where the primitive itself fails while it runs its generator, there was no room for the code. Every
  // processor is an engine: where none can be made, whatever status it gives, there was no room for that.
  if (const auto* onednn = dynamic_cast<const dnnl::error*>(&error))
    return onednn->status == dnnl_out_of_memory || onednn->what() == "could not create an engine"sv ||
           (onednn->status == dnnl_runtime_error && onednn->what() == "could not create a primitive"sv);
  // libtorch has no type of its own for the host's memory, only these words.
  const auto* torch = dynamic_cast<const c10::Error*>(&error);
  if (!torch) return false;
  const std::string_view words = torch->what_without_backtrace();
  return words.find("alloc_cpu.cpp") != std::string_view::npos ||
         words.find("allocate memory") != std::string_view::npos ||
         words.find("not enough memory") != std::string_view::npos;
}

void rethrow_in_our_words(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const OutOfMemory&) {
    throw;
  } catch (const std::exception& e) {
    if (is_out_of_memory(e)) throw OutOfMemory();
    throw;
  }
}

}  // namespace espalier
