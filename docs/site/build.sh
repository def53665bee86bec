#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# build.sh FOLDER: the pages and the public headers as FOLDER/html. Ends with 1 on any warning, 77 without Doxygen or Python.
set -euo pipefail
out=$(realpath -m "${1:?build.sh FOLDER}")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
for program in doxygen python3; do
  command -v "$program" >/dev/null || { echo "build.sh: $program is not installed" >&2; exit 77; }
done
rm -rf "$out/html"
mkdir -p "$out"
version=$(sed -nE 's/^project\(Espalier VERSION ([0-9.]+).*/\1/p' CMakeLists.txt)
{
  cat docs/site/Doxyfile
  printf 'OUTPUT_DIRECTORY = "%s"\nPROJECT_NUMBER = %s\n' "$out" "$version"
} | PYTHONDONTWRITEBYTECODE=1 doxygen -
