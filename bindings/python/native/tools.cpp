// SPDX-License-Identifier: Apache-2.0
// What looks at policies: recordings, replays, pages, evaluations, and the properties that each must hold.
#include <c10/core/InferenceMode.h>
#include <pybind11/stl.h>

#include <map>
#include <utility>

#include "engine.h"
#include "espalier/evaluation.h"
#include "espalier/inspect.h"
#include "espalier/policy_properties.h"
#include "espalier/recording.h"
#include "policy.h"
#include "request.h"
#include "result.h"

namespace espalier::python {

namespace {

using namespace pybind11::literals;

// For Python to change as it likes; it was made without gradients.
at::Tensor ordinary(const at::Tensor& t) {
  const c10::InferenceMode ordinary(false);
  return t.clone();
}

py::object record(LiveEngine& self, const Request& request, const std::vector<std::string>& only,
                  const py::dict& functions, int64_t generated) {
  std::optional<Recording> recording;
  call_engine(self, callbacks_of(functions), [&](const Callbacks& callbacks) {
    recording = espalier::record(self.engine(), request, only, callbacks, generated);
  });
  if (!recording) return py::none();
  py::dict signals;
  for (const auto& [name, t] : recording->signals) signals[py::str(name)] = ordinary(t);
  return py::make_tuple(recording->layout, signals);
}

py::object replay(py::handle policy, const std::string& layout, std::map<std::string, at::Tensor> signals) {
  const PolicyPtr walked = policy_of(policy);
  Replayed replayed;
  {
    const Unlocked unlocked;
    replayed = espalier::replay(walked, {layout, std::move(signals)});
  }
  py::tuple points(replayed.points.size());
  for (size_t i = 0; i < replayed.points.size(); ++i) {
    const ReplayedPoint& p = replayed.points[i];
    points[i] =
        py::make_tuple(to_python(p.trace), p.merged.defined() ? py::cast(ordinary(p.merged)) : py::object(py::none()),
                       tensor_of(p.merged_source), tensor_of(p.merged_position_from));
  }
  return py::make_tuple(points, tensor_of(replayed.kept));
}

py::object inspect(LiveEngine& self, const std::vector<Request>& requests, const py::dict& functions) {
  std::optional<std::string> page;
  call_engine(self, callbacks_of(functions),
              [&](const Callbacks& callbacks) { page = espalier::inspect(self.engine(), requests, callbacks); });
  return page ? py::object(text_of(*page)) : py::object(py::none());
}

// `options` is the dataclass EvaluationOptions.
py::object evaluate(LiveEngine& self, const py::list& policies, py::handle options, const py::dict& functions) {
  EvaluationOptions asked;
  for (const py::handle policy : policies) {
    if (py::isinstance<py::str>(policy)) {
      asked.policies.push_back({.spec = policy.cast<std::string>()});
      continue;
    }
    const PolicyPtr custom = policy_of(policy);
    asked.policies.push_back({.spec = custom->spec(), .custom = custom});
  }
  asked.suites = field<std::vector<std::string>>(options, "suites");
  asked.seed = field<uint64_t>(options, "seed");
  asked.items = field<int64_t>(options, "items");
  asked.difficulty = field<std::string>(options, "difficulty");
  asked.side = optional_field<int>(options, "side");
  asked.with_controls = field<bool>(options, "with_controls");
  Callbacks told = callbacks_of(functions);
  const auto on_progress = std::exchange(told.on_progress, {});
  std::optional<std::string> json;
  call_engine(self, std::move(told), [&](const Callbacks& callbacks) {
    EvaluationCallbacks watched{.should_cancel = callbacks.should_cancel};
    if (on_progress) watched.on_progress = [&](int64_t done, int64_t total) { on_progress("evaluate", done, total); };
    json = espalier::evaluate(self.engine(), asked, watched);
  });
  return json ? py::object(text_of(*json)) : py::object(py::none());
}

// ---- properties ----

using Property = std::string (*)(const ConformingPolicy&);
constexpr std::pair<const char*, Property> kProperties[] = {
    {"keeps_tokens_that_are_there", conformance::keeps_tokens_that_are_there},
    {"keeps_text", conformance::keeps_text},
    {"keeps_the_share", conformance::keeps_the_share},
    {"keeps_all_at_one", conformance::keeps_all_at_one},
    {"keeps_pinned", conformance::keeps_pinned},
    {"treats_images_alike", conformance::treats_images_alike},
    {"works_without_images", conformance::works_without_images},
    {"works_with_one_token", conformance::works_with_one_token},
    {"works_with_sixteen_images", conformance::works_with_sixteen_images},
    {"works_with_tiles", conformance::works_with_tiles},
    {"works_with_equal_tokens", conformance::works_with_equal_tokens},
    {"keeps_to_its_scope", conformance::keeps_to_its_scope},
    {"keeps_nested_sets", conformance::keeps_nested_sets},
    {"repeats_itself", conformance::repeats_itself}};

std::string check_property(const std::string& name, py::object make) {
  const ConformingPolicy policy{.name = "policy", .make = [make = hold(std::move(make))](Fraction ratio) {
                                  return in_python([&] {
                                    const py::object fraction = py::module_::import("fractions").attr("Fraction");
                                    return policy_of((*make)(fraction(ratio.num, ratio.den)));
                                  });
                                }};
  const Unlocked unlocked;
  for (const auto& [known, property] : kProperties)
    if (name == known) {
      const c10::InferenceMode no_gradients;
      return property(policy);
    }
  throw Error("property: there is no '" + name + "'");
}

}  // namespace

void add_tools(py::module_& module) {
  module.def("record", &record, "engine"_a, "request"_a, "only"_a, "callbacks"_a, "generated"_a,
             py::call_guard<Inside>());
  module.def("replay", &replay, "policy"_a, "layout"_a, "signals"_a, py::call_guard<Inside>());
  module.def("inspect", &inspect, "engine"_a, "requests"_a, "callbacks"_a, py::call_guard<Inside>());
  module.def("evaluate", &evaluate, "engine"_a, "policies"_a, "options"_a, "callbacks"_a, py::call_guard<Inside>());
  py::tuple names(std::size(kProperties));
  for (size_t i = 0; i < std::size(kProperties); ++i) names[i] = kProperties[i].first;
  module.attr("PROPERTIES") = names;
  module.def("check_property", &check_property, "name"_a, "make"_a, py::call_guard<Inside>());
  module.def("conformance_model", [] { return to_python(conformance_model()); });
}

}  // namespace espalier::python
