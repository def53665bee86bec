// SPDX-License-Identifier: Apache-2.0
// What a plugin looks like that was built for another libtorch: it must not be asked for more than that.
#include <cstdlib>

extern "C" const char* espalier_plugin_built_for() {
  return "policy interface 1, libtorch 2.3.1";
}
extern "C" const char* espalier_plugin_name() {
  std::abort();
}
extern "C" void espalier_plugin_factory(void*) {
  std::abort();
}
