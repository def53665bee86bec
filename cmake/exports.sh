#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Writes the linker's version script of libespalier.so: what public headers declare is exported, everything else is the
# library's own. A class or function counts as declared where its name stands in a line of a header that is not indented,
# in any of the namespaces that headers open. A class that they name and do not define (Impl) is the library's own.
#   exports.sh HEADER_FOLDER FILE_WITH_OBJECT_FILES > version script
set -euo pipefail
headers=$1 objects=$2

declared=$(mktemp) hidden=$(mktemp) namespaces=$(mktemp) symbols=$(mktemp)
trap 'rm -f "$declared" "$hidden" "$namespaces" "$symbols"' EXIT
lines() { find "$headers" -name '*.h' -exec sed -E 's|//.*||; s|^\[\[[a-z_]+\]\] ||' {} +; }

lines | grep -E '^[A-Za-z]' | grep -oE '[A-Za-z_0-9]+\(|^(class|struct|enum class) [A-Za-z_0-9]+' |
  sed -E 's/\($//; s/.* //' | LC_ALL=C sort -u >"$declared"
lines | grep -oE '\b(class|struct) [A-Za-z_0-9]+( final)?( :[^:].*)? ?[{;]' | sed -E 's/ final//; s/ :.*/ {/' |
  awk '{name = $2; sub(/[;{].*/, "", name)} /;$/ {named[name]} !/;$/ {defined[name]}
       END {for (name in named) if (!(name in defined)) print name}' >"$hidden"

lines | sed -nE 's/^namespace ([a-z_:]+) [{].*/\1/p' | tr ':' '\n' | LC_ALL=C sort -u >"$namespaces"

xargs -d '\n' nm --defined-only --extern-only --format=posix <"$objects" | awk 'NF >= 2 && $2 ~ /[A-Z]/ {print $1}' |
  LC_ALL=C sort -u >"$symbols"

echo '{'
echo '  global:'
paste "$symbols" <(c++filt <"$symbols") | awk -F '\t' -v declared="$declared" -v hidden="$hidden" -v namespaces="$namespaces" '
  BEGIN {
    while ((getline name < declared) > 0) is_declared[name]
    while ((getline name < hidden) > 0) is_hidden[name]
    while ((getline name < namespaces) > 0) is_namespace[name]
  }
  {
    name = $2
    if (name ~ /^espalier_[a-z0-9_]+$/) { if (name in is_declared) print "    " $1 ";"; next }
    sub(/^(vtable|VTT|typeinfo|typeinfo name|guard variable) for /, "", name)
    sub(/^(non-virtual|virtual) thunk to /, "", name)
    if (name !~ /^espalier::/) next
    sub(/[<(\[].*/, "", name)
    n = split(name, part, "::")
    for (i = 2; i <= n; ++i) if (part[i] in is_hidden) next
    for (i = 2; part[i] in is_namespace; ++i) {}
    if (part[i] in is_declared) print "    " $1 ";"
  }'
echo '  local: *;'
echo '};'
