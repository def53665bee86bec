// SPDX-License-Identifier: Apache-2.0
#include "c_api/call.h"

#include <cstdlib>
#include <new>
#include <string_view>

#include "espalier/scheduler.h"
#include "espalier/version.h"

struct espalier_error {
  espalier_code code;
  std::string message;
};

namespace espalier::c_api {

namespace {

espalier_error no_memory_for_an_error{ESPALIER_OUT_OF_MEMORY, OutOfMemory().what()};

espalier_error error_of(const std::exception_ptr& thrown) {
  try {
    std::rethrow_exception(thrown);
  } catch (const QueueFull& error) {
    return {ESPALIER_QUEUE_FULL, error.what()};
  } catch (const Error& error) {
    return {ESPALIER_BAD_INPUT, error.what()};
  } catch (const std::bad_alloc&) {
    return {ESPALIER_OUT_OF_MEMORY, OutOfMemory().what()};
  } catch (const std::exception& error) {
    // Messages of libtorch bring stack traces along; the first line says what happened.
    const std::string_view message = error.what();
    return {ESPALIER_FAILED, std::string(message.substr(0, message.find('\n')))};
  } catch (...) {
    return {ESPALIER_FAILED, "an unknown failure"};
  }
}

}  // namespace

espalier_code report(const std::exception_ptr& thrown, espalier_error** error) noexcept {
  try {
    espalier_error what = error_of(thrown);
    const espalier_code code = what.code;
    if (error) *error = new espalier_error(std::move(what));
    return code;
  } catch (...) {
    if (error) *error = &no_memory_for_an_error;
    return no_memory_for_an_error.code;
  }
}

std::string needed_text(const char* argument, const char* name) {
  return &needed(argument, name);
}

char* new_text(const std::string& text) {
  char* copy = static_cast<char*>(std::malloc(text.size() + 1));
  if (!copy) throw std::bad_alloc();
  std::memcpy(copy, text.c_str(), text.size() + 1);
  return copy;
}

}  // namespace espalier::c_api

extern "C" {

const char* espalier_version(void) {
  return espalier::version();
}

void espalier_text_free(char* text) {
  std::free(text);
}

espalier_code espalier_error_code(const espalier_error* error) {
  return error ? error->code : ESPALIER_OK;
}

const char* espalier_error_message(const espalier_error* error) {
  return error ? error->message.c_str() : "";
}

void espalier_error_free(espalier_error* error) {
  if (error != &espalier::c_api::no_memory_for_an_error) delete error;
}

}  // extern "C"
