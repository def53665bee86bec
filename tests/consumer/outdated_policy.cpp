// SPDX-License-Identifier: Apache-2.0
// What a plugin looks like that was built for an older interface: it must not be asked for more than that.
#include <torch/headeronly/version.h>

#include <cstdlib>

extern "C" const char* espalier_plugin_built_for() {
  return "policy interface 1, libtorch " TORCH_VERSION;
}
extern "C" const char* espalier_plugin_name() {
  std::abort();
}
extern "C" void espalier_plugin_factory(void*) {
  std::abort();
}
