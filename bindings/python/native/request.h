// SPDX-License-Identifier: Apache-2.0
// Requests and callbacks as Python states them.
#pragma once

#include "crossing.h"
#include "espalier/generation.h"

namespace espalier::python {

// From options by name; those that are not there keep their defaults. Throws Error for a name that is none.
// `policy`, `salt` and `trace` among them are the request's own.
Request request_of(Prompt prompt, const py::dict& options);
// Of options that say how to generate, and nothing else.
GenerationOptions generation_of(const py::dict& options);

// Functions by name: on_text(request, piece) -> None, "stop" or "cancel"; on_token(request, id, logprobs or None);
// on_prompt(request, trace); on_point(request, trace); on_progress(stage, done, total); should_cancel() -> bool.
Callbacks callbacks_of(const py::dict& functions);

void add_prompts(py::module_& module);

}  // namespace espalier::python
