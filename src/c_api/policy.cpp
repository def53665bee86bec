// SPDX-License-Identifier: Apache-2.0
// Policies of espalier.h.
#include <vector>

#include "c_api/call.h"
#include "c_api/handles.h"
#include "espalier/policy_plugin.h"

using namespace espalier;
using namespace espalier::c_api;

extern "C" {

espalier_code espalier_policy_check(const char* spec, espalier_error** error) {
  return call(error, [&] { make_policy(needed_text(spec, "spec")); });
}

espalier_code espalier_policy_make(const char* spec, const char* const* plugins, size_t num_plugins,
                                   espalier_policy** policy, espalier_error** error) {
  return make_handle(policy, "policy", error, [&] {
    std::vector<PolicyPlugin> loaded;
    for (size_t i = 0; i < num_plugins; ++i)
      loaded.push_back(PolicyPlugin::load(needed_text(&needed(plugins, "plugins") ? plugins[i] : nullptr, "plugins")));
    const PolicyPtr made = make_policy(needed_text(spec, "spec"), loaded);
    return espalier_policy{made, made->spec()};
  });
}

const char* espalier_policy_spec(const espalier_policy* policy) {
  return policy ? policy->spec.c_str() : nullptr;
}

void espalier_policy_free(espalier_policy* policy) {
  delete policy;
}

}  // extern "C"
