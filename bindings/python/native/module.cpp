// SPDX-License-Identifier: Apache-2.0
// espalier._native: what the modules of the package stand on. Values cross as the dataclasses of the package; here are
// the classes that hold something, and the functions.
#include <c10/util/Exception.h>

#include "engine.h"
#include "espalier/image.h"
#include "espalier/scheduler.h"
#include "policy.h"
#include "request.h"

namespace espalier::python {

namespace {

// What each exception of C++ is in Python. Later ones are asked first.
void add_exceptions(py::module_& module) {
  const auto error = py::register_local_exception<Error>(module, "Error", PyExc_ValueError);
  py::register_local_exception<QueueFull>(module, "QueueFull", error);
  py::register_local_exception<ImageTooLarge>(module, "ImageTooLarge", error);
  py::register_local_exception_translator([](std::exception_ptr thrown) {
    try {
      std::rethrow_exception(thrown);
    } catch (const Raised& raised) {
      raised.restore();
    } catch (const c10::Error& torch) {
      py::set_error(PyExc_RuntimeError, torch.what_without_backtrace());
    }
  });
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  add_exceptions(module);
  add_prompts(module);
  add_policies(module);
  add_engine(module);
  add_sessions(module);
  add_tools(module);
  module.def("leave_interpreter", &leave_interpreter);
}

}  // namespace espalier::python
