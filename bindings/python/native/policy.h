// SPDX-License-Identifier: Apache-2.0
// Policies of Python code for the engine, and what they are told and answer.
#pragma once

#include "crossing.h"
#include "espalier/pruning.h"

namespace espalier::python {

// A spec string, a policy of the library, a Python policy, or several of them in sequence. Throws Error for anything
// else.
PolicyPtr policy_of(py::handle policy);

py::object to_python(const ModelFacts& model);
void add_policies(py::module_& module);

}  // namespace espalier::python
