// SPDX-License-Identifier: Apache-2.0
#include "crossing.h"

#include <unistd.h>

#include <atomic>
#include <future>
#include <thread>

namespace espalier::python {

namespace {

// Signals are handled on this thread alone; elsewhere there is nothing to look after.
bool is_main_thread() {
  const py::object main = py::module_::import("threading").attr("main_thread")();
  return main.attr("ident").cast<unsigned long>() == PyThread_get_thread_ident();
}

// A thread that comes back counts itself before it looks whether it still may, and the one that leaves says so before
// it looks at the count: none of them can be missed.
std::atomic<unsigned long> leaving_thread = 0;
std::atomic<int> coming_back = 0;
std::atomic<int> inside = 0;

}  // namespace

Inside::Inside() {
  ++inside;
}
Inside::~Inside() {
  --inside;
}

Unlocked::~Unlocked() {
  ++coming_back;
  const unsigned long leaving = leaving_thread;
  if (leaving != 0 && leaving != PyThread_get_thread_ident()) {
    --coming_back;
    for (;;) ::pause();
  }
  PyEval_RestoreThread(state_);
  --coming_back;
}

void leave_interpreter() {
  const auto wait_for_none = [](const std::atomic<int>& count) {
    PyThreadState* state = PyEval_SaveThread();
    while (count > 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    PyEval_RestoreThread(state);
  };
  do wait_for_none(inside);
  while (inside > 0);  // one that came while this thread took the lock
  leaving_thread = PyThread_get_thread_ident();
  wait_for_none(coming_back);
}

Raised::Raised(const py::error_already_set& error) : value_(hold(error.value())), what_(error.what()) {
  what_ = what_.substr(0, what_.find('\n'));
}

void Raised::restore() const {
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(value_->ptr())), value_->ptr());
}

Held hold(py::object object) {
  return {new py::object(std::move(object)), [](const py::object* held) {
            if (!Py_IsInitialized()) return;  // the interpreter has gone, and its objects with it
            const py::gil_scoped_acquire lock;
            delete held;
          }};
}

void wait_interruptibly(const std::function<bool(std::chrono::milliseconds)>& wait) {
  constexpr std::chrono::milliseconds kBetweenLooks{50};
  for (;;) {
    {
      const Unlocked unlocked;
      if (wait(kBetweenLooks)) return;
    }
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }
}

void run_interruptibly(const std::function<void()>& work, const std::function<void()>& cancel) {
  // On the thread that computes, too, where a callback asks: work must stay on it.
  if (!is_main_thread()) {
    const Unlocked unlocked;
    return work();
  }
  std::future<void> done = std::async(std::launch::async, work);
  try {
    wait_interruptibly(
        [&](std::chrono::milliseconds time) { return done.wait_for(time) == std::future_status::ready; });
  } catch (const py::error_already_set&) {
    cancel();
    {
      const Unlocked unlocked;
      done.wait();
    }
    throw;
  }
  done.get();
}

void refuse(py::handle of, const char* name, const char* expected, py::handle got) {
  std::string came = py::repr(got).cast<std::string>();
  constexpr size_t kLongest = 80;
  if (came.size() > kLongest) came = py::type::of(got).attr("__name__").cast<std::string>();
  throw Error(py::type::of(of).attr("__name__").cast<std::string>() + "." + name + ": expected " + expected + ", got " +
              came);
}

at::Tensor tensor_field(py::handle of, const char* name) {
  return optional_field<at::Tensor>(of, name).value_or(at::Tensor());
}

py::object callable_field(py::handle of, const char* name) {
  py::object value = of.attr(name);
  if (!value.is_none() && !PyCallable_Check(value.ptr())) refuse(of, name, "a function", value);
  return value;
}

py::str text_of(std::string_view bytes) {
  PyObject* text = PyUnicode_DecodeUTF8(bytes.data(), static_cast<Py_ssize_t>(bytes.size()), "replace");
  if (!text) throw py::error_already_set();
  return py::reinterpret_steal<py::str>(text);
}

}  // namespace espalier::python
