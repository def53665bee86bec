// SPDX-License-Identifier: Apache-2.0
// How calls and objects cross between Python and C++. Espalier computes on a thread of its own and knows nothing of the
// interpreter's lock; whatever calls into Python takes it (in_python), whatever enters Espalier gives it up.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <chrono>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "espalier/error.h"

namespace espalier::python {

// An exception of Python code on its way through C++. It may be thrown again and again, on any thread, and comes back
// to Python as the object that it was.
class Raised : public std::exception {
 public:
  // With the lock.
  explicit Raised(const py::error_already_set& error);
  const char* what() const noexcept override { return what_.c_str(); }  // "ValueError: …"
  void restore() const;                                                 // with the lock

 private:
  std::shared_ptr<const py::object> value_;
  std::string what_;
};

// The interpreter ends threads that want its lock while it ends itself. One that is in the midst of C++ then takes the
// process along with an abort, so the end waits for calls that are inside, and lets none come back after that.

// Guards a call that returns what it makes of Python objects. Something must end the call when the program ends.
class Inside {
 public:
  Inside();
  ~Inside();
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;
};

// Gives the interpreter's lock up while it lives. On other threads than the one that ends the program its end may never
// come: they wait for the end of the process there.
class Unlocked {
 public:
  Unlocked() : state_(PyEval_SaveThread()) {}
  ~Unlocked();
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;

 private:
  PyThreadState* state_;
};

// The program ends, on this thread, which has the lock; all that could keep a call inside has been closed.
void leave_interpreter();

// A Python object for C++ that holds and drops it on any thread, with the lock or without.
using Held = std::shared_ptr<const py::object>;
Held hold(py::object object);

// What `work` returns, which must not be a Python object; with the lock. Throws Raised for what it raises.
template <typename Work>
auto in_python(const Work& work) {
  const py::gil_scoped_acquire lock;
  try {
    return work();
  } catch (const py::error_already_set& error) {
    throw Raised(error);
  }
}

// Both are called with the lock, give it up, and look after Python's signals: what a handler raises (Ctrl-C) is thrown.
// `wait` is asked again until it returns true; it waits for as long as it is told at most.
void wait_interruptibly(const std::function<bool(std::chrono::milliseconds)>& wait);
// Before anything is thrown, `cancel` is called and the end of `work` waited for.
void run_interruptibly(const std::function<void()>& work, const std::function<void()>& cancel);

// ---- fields of dataclasses ----

[[noreturn]] void refuse(py::handle of, const char* name, const char* expected, py::handle got);

// What a field of this type is called in messages.
template <typename T>
constexpr const char* kKind = "another type";
template <>
inline constexpr const char* kKind<bool> = "True or False";
template <>
inline constexpr const char* kKind<int> = "an int";
template <>
inline constexpr const char* kKind<int64_t> = "an int";
template <>
inline constexpr const char* kKind<uint64_t> = "an int from 0 up";
template <>
inline constexpr const char* kKind<double> = "a float";
template <>
inline constexpr const char* kKind<std::string> = "a str";
template <>
inline constexpr const char* kKind<at::Tensor> = "a torch.Tensor";
template <>
inline constexpr const char* kKind<std::vector<int64_t>> = "ints";
template <>
inline constexpr const char* kKind<std::vector<std::string>> = "strings";
template <>
inline constexpr const char* kKind<std::pair<int64_t, int64_t>> = "two ints";
template <>
inline constexpr const char* kKind<std::map<std::string, at::Tensor>> = "tensors by name";

// of.name. Throws Error, naming class and field, for a value of another type.
template <typename T>
T field(py::handle of, const char* name) {
  const py::object value = of.attr(name);
  try {
    return value.cast<T>();
  } catch (const py::cast_error&) {
    refuse(of, name, kKind<T>, value);
  }
}
template <typename T>
std::optional<T> optional_field(py::handle of, const char* name) {
  if (of.attr(name).is_none()) return std::nullopt;
  return field<T>(of, name);
}
// Undefined for None.
at::Tensor tensor_field(py::handle of, const char* name);
// None, or something that can be called.
py::object callable_field(py::handle of, const char* name);

template <typename T>
struct Word {
  const char* text;
  T value;
};
// A field that is one of the table's words.
template <typename T, size_t count>
T word_field(py::handle of, const char* name, const Word<T> (&words)[count]) {
  const py::object value = of.attr(name);
  std::string expected;
  for (const Word<T>& word : words) {
    if (py::isinstance<py::str>(value) && value.cast<std::string>() == word.text) return word.value;
    expected += (expected.empty() ? "\"" : ", \"") + std::string(word.text) + "\"";
  }
  refuse(of, name, expected.c_str(), value);
}
template <typename T, size_t count>
const char* word_of(T value, const Word<T> (&words)[count]) {
  for (const Word<T>& word : words)
    if (word.value == value) return word.text;
  return "";
}

// Of bytes that need not be UTF-8: a stop string may have cut a character in two.
py::str text_of(std::string_view bytes);

}  // namespace espalier::python
