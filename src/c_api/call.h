// SPDX-License-Identifier: Apache-2.0
// What every function of espalier.h does around its work: exceptions become codes, arguments are looked at.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>

#include "espalier/error.h"
#include "espalier/espalier.h"

namespace espalier::c_api {

// The code of an exception; with `error`, also what it says. Throws nothing: where there is no memory for an error
// there is one that was made before.
espalier_code report(const std::exception_ptr& thrown, espalier_error** error) noexcept;

template <typename Work>
espalier_code call(espalier_error** error, const Work& work) noexcept {
  if (error) *error = nullptr;
  try {
    work();
    return ESPALIER_OK;
  } catch (...) {
    return report(std::current_exception(), error);
  }
}

// An argument that must not be NULL.
template <typename T>
T& needed(T* argument, const char* name) {
  if (!argument) throw Error(std::string(name) + ": expected a value, got NULL");
  return *argument;
}
std::string needed_text(const char* argument, const char* name);
inline std::string text_or(const char* argument, const char* otherwise) {
  return argument ? argument : otherwise;
}

// A constant of an enumeration whose values are 0 to last.
template <typename Enum>
Enum constant(int64_t value, Enum last, const char* name) {
  if (value < 0 || value > static_cast<int64_t>(last))
    throw Error(std::string(name) + ": expected 0 to " + std::to_string(last) + ", got " + std::to_string(value));
  return static_cast<Enum>(value);
}

// A struct of a caller who may have been compiled with another edition of the header: what he does not have is 0, and
// what this edition does not have must be.
template <typename Struct>
Struct read_struct(const Struct& given, const char* name) {
  constexpr size_t kWord = 8, kMost = 4096;  // of any edition
  static_assert(std::is_trivially_copyable_v<Struct> && sizeof(Struct) % kWord == 0);
  if (given.size < kWord || given.size > kMost || given.size % kWord != 0)
    throw Error(std::string(name) + ".size: expected sizeof(espalier_" + name + "), here " +
                std::to_string(sizeof(Struct)) + ", got " + std::to_string(given.size));
  const auto* bytes = reinterpret_cast<const unsigned char*>(&given);
  if (given.size > sizeof(Struct) &&
      std::any_of(bytes + sizeof(Struct), bytes + given.size, [](unsigned char byte) { return byte != 0; }))
    throw Error(std::string(name) + ": a field is set that this library (" + espalier_version() + ") does not know");
  Struct own{};
  std::memcpy(&own, bytes, std::min(given.size, sizeof own));
  own.size = sizeof own;
  return own;
}

// What stands where a struct may be left out.
template <typename Struct>
Struct read_struct_or_defaults(const Struct* given, const char* name) {
  if (given) return read_struct(*given, name);
  Struct defaults{};
  defaults.size = sizeof defaults;
  return defaults;
}

// Puts what `make` returns into *into, which is NULL until then.
template <typename Handle, typename Make>
espalier_code make_handle(Handle** into, const char* name, espalier_error** error, const Make& make) noexcept {
  if (into) *into = nullptr;
  return call(error, [&] {
    needed(into, name);
    *into = std::make_unique<Handle>(Handle{make()}).release();
  });
}

// A text that the caller frees.
char* new_text(const std::string& text);

template <typename Make>
espalier_code make_text(char** into, const char* name, espalier_error** error, const Make& make) noexcept {
  if (into) *into = nullptr;
  return call(error, [&] {
    needed(into, name);
    *into = new_text(make());
  });
}

}  // namespace espalier::c_api
