// SPDX-License-Identifier: Apache-2.0
// Where our functions meet PyTorch's dispatcher. Included by an op's .cpp files only.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <string>
#include <string_view>

#include "kernels/support/choice_names.h"

namespace espalier::ops {

// The op of that name, which takes what one of its kernels takes: find_op<decltype(linear_meta)>("linear"). Registering
// a kernel of another type is an error at start, so the type cannot drift.
template <typename Signature>
c10::TypedOperatorHandle<Signature> find_op(const std::string& name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(("espalier::" + name).c_str(), "").typed<Signature>();
}

// A name of a schema on its way into a choice.
struct ChoiceFromName {
  std::string_view name;
  template <typename Choice>
  operator Choice() const {
    return choice_named<Choice>(name);
  }
};

template <typename Argument>
const Argument& from_schema(const Argument& argument) {
  return argument;
}
inline ChoiceFromName from_schema(const std::string_view& name) {
  return {name};
}

// The dispatcher passes an op's arguments one by one; kernels of ops that have many take one struct, whose members are
// these arguments in order. Unpacked<Signature, kernel>::call is the kernel as the dispatcher calls it.
template <typename Signature, auto kernel>
struct Unpacked;
template <typename Result, typename... Arguments, typename Call, Result (*kernel)(const Call&)>
struct Unpacked<Result(Arguments...), kernel> {
  static Result call(Arguments... arguments) { return kernel(Call{from_schema(arguments)...}); }
};

}  // namespace espalier::ops
