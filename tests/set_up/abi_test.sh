#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tests/c_api/abi.sh with headers that differ from the real one: what it must let pass, and what not.
set -euo pipefail
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
command -v abidiff >/dev/null || exit 77
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cp -r "$top/tests/c_api" "$folder/c_api"
real=$top/include/espalier/espalier.h
"$folder/c_api/abi.sh" --renew "$real"

# expect STATUS SED_SCRIPT: for the header with that change.
expect() {
  local status=0
  sed -E "$2" "$real" >"$folder/espalier.h"
  ! cmp -s "$real" "$folder/espalier.h" || { echo "'$2' changes nothing"; exit 1; }
  "$folder/c_api/abi.sh" "$folder/espalier.h" >"$folder/log" 2>&1 || status=$?
  [ "$status" -eq "$1" ] || { cat "$folder/log"; echo "'$2': status $status, expected $1"; exit 1; }
}
"$folder/c_api/abi.sh" "$real"
expect 0 's|^ESPALIER_API const char\* espalier_version|ESPALIER_API int espalier_more(void);\n&|'
expect 0 's|^\} espalier_request;|  int64_t more;\n&|'
expect 0 's|^\} espalier_code;|  ESPALIER_MORE = 5,\n&|'
expect 1 '/^ESPALIER_API const char\* espalier_version/d'
expect 1 's|^(ESPALIER_API void espalier_text_free\()char|\1const int|'
expect 1 's|^(ESPALIER_API int32_t espalier_image_width\()|\1int more, |'
expect 1 's|ESPALIER_DTYPE_FLOAT32 = 1|ESPALIER_DTYPE_FLOAT32 = 7|'
expect 1 's|^  int64_t trace;|  int64_t more;\n&|'
expect 1 's|^  const char\* salt;|  const char* pepper;|'
expect 1 's|^(  void \(\*on_token\)\(void\* user, )int32_t id|\1int64_t id|'
expect 1 's|^  int64_t int8_weights;|  int32_t int8_weights, half;|'
expect 1 's|^  size_t num_stop;|  uint32_t num_stop, half;|; s|^\} espalier_generation_options;|  int64_t more;\n&|'
