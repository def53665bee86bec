// SPDX-License-Identifier: Apache-2.0
// Results and traces as the frozen dataclasses of espalier/results.py. With the interpreter's lock.
#pragma once

#include "crossing.h"
#include "espalier/generation.h"

namespace espalier::python {

py::object to_python(const Result& result);
py::object to_python(const TokenLogprobs& logprobs);
py::object to_python(const PromptTrace& trace);
py::object to_python(const PointTrace& trace);
template <typename T>
py::tuple to_python(const std::vector<T>& values) {
  py::tuple all(values.size());
  for (size_t i = 0; i < values.size(); ++i) all[i] = to_python(values[i]);
  return all;
}

// int64 on the CPU, for Python to change as it likes: not an inference tensor wherever it is made.
at::Tensor tensor_of(const std::vector<int64_t>& values);

}  // namespace espalier::python
