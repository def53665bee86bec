// SPDX-License-Identifier: Apache-2.0
// Calls an op through the dispatcher by its name with boxed arguments, as Python and other libraries do; ops.h is not
// involved.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>

#include <string>
#include <vector>

namespace espalier::test {

inline std::vector<c10::IValue> call_op(const std::string& name, std::vector<c10::IValue> arguments) {
  c10::Dispatcher::singleton().findSchemaOrThrow(("espalier::" + name).c_str(), "").callBoxed(&arguments);
  return arguments;
}

}  // namespace espalier::test
