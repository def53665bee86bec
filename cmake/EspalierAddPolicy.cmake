# SPDX-License-Identifier: Apache-2.0
# espalier_add_policy(NAME FILE...): a policy of one's own (policy_plugin.h) as NAME.so, which `--policy-plugin` and
# PolicyPlugin::load read. Reading libtorch's tensor takes most of the time that such a file compiles, so it is read once
# for all policies of a folder.
function(espalier_add_policy name)
  add_library(${name} MODULE ${ARGN})
  set_target_properties(${name} PROPERTIES PREFIX "" DEFINE_SYMBOL "")  # which would differ and spoil the shared header
  target_link_libraries(${name} PRIVATE espalier::espalier)
  get_property(first DIRECTORY PROPERTY espalier_first_policy)
  if(first)
    target_precompile_headers(${name} REUSE_FROM ${first})
  else()
    target_precompile_headers(${name} PRIVATE <espalier/pruning.h>)
    set_property(DIRECTORY PROPERTY espalier_first_policy ${name})
  endif()
endfunction()
