#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The functions that espalier.h declares, those that the library exports and those that the test program calls are the same.
#   exported.sh HEADER LIBRARY PROGRAM
set -euo pipefail
# Plugins of policies export names of their own beginning, and the library looks for them: policy_plugin.h.
names() { grep -oE '\bespalier_[a-z0-9_]+' | { grep -v '^espalier_plugin_' || true; } | LC_ALL=C sort -u; }
declared=$(sed -nE 's/.*\b(espalier_[a-z0-9_]+)\(.*/\1/p' <(grep -E '^ESPALIER_API' "$1") | names)
exported=$(nm -D --defined-only "$2" | awk '$2 == "T" && $3 ~ /^espalier_/ {print $3}' | names)
called=$(nm -u "$3" | awk '$NF ~ /^espalier_/ {print $NF}' | names)
[ -n "$declared" ]
diff <(echo "$declared") <(echo "$exported") >&2 || { echo "declared (<) and exported (>) functions differ" >&2; exit 1; }
diff <(echo "$declared") <(echo "$called") >&2 || { echo "declared (<) and tested (>) functions differ" >&2; exit 1; }
