#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The table of lines that tests reach, of a program with three lines to reach of which one is not, and a header that one of
# two units reaches.
set -euo pipefail
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir -p "$folder/src/a" "$folder/kernels" "$folder/build"
printf 'inline int twice(int x) {\n  return x + x;\n}\n' >"$folder/src/a/twice.h"
printf '#include "twice.h"\nint f(int x) {\n  if (x < 0)\n    return 7;\n  return twice(x);\n}\n' >"$folder/src/a/f.cpp"
printf '#include "../src/a/twice.h"\nint never(int x) {\n  return twice(x);\n}\n' >"$folder/kernels/never.cpp"
printf 'int f(int);\nint main() { return f(0); }\n' >"$folder/main.cpp"
cd "$folder/build"
for unit in src/a/f kernels/never main; do g++ -O0 --coverage -c "../$unit.cpp" -o "$(basename $unit).o"; done
g++ --coverage ./*.o -o main
./main
table=$("$top/tests/set_up/coverage.py" "$folder/build" "$folder")
expect() { grep -qE "$1" <<<"$table" || { echo "'$1' is not in:"; echo "$table"; exit 1; }; }
expect '^kernels +2 +0\.0%'
expect '^src/a +6 +83\.3%'
expect '^all +8 +62\.5%'
[ "$(cat uncovered.txt)" = $'kernels/never.cpp:2\nkernels/never.cpp:3\nsrc/a/f.cpp:4' ] || { cat uncovered.txt; exit 1; }
