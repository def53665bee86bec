#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A program that was built with an earlier espalier.h runs with this one: abidiff (libabigail) compares what the header declares
# with espalier.abi beside this script, which was written at the last release. Functions may come, and fields at the ends of
# structs, and constants; what is there stays.
#   abi.sh HEADER [OLD]        1 for a change that breaks programs, in words; 77 without abidiff
#   abi.sh --renew HEADER      writes espalier.abi
# A released library has no debug information, from which abidiff knows types, so what it reads is made from the header: each
# declaration with a body that does nothing, and a function for each field that takes its type and its place. That the library
# defines the same functions is the compiler's work and exported.sh's.
set -euo pipefail
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
renew=''
if [ "$1" = --renew ]; then renew=yes; shift; fi
header=$(readlink -f "$1") old=${2:-$here/espalier.abi}
command -v abidiff >/dev/null || { echo "skipped: no abidiff (apt-get install abigail-tools)"; exit 77; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
{
  printf '#include "%s"\n' "$header"
  sed -E 's|//.*||' "$header" | awk '
    /^typedef enum/ { print "void constants_of_" $3 "(" $3 " value) { (void)value; }" }  # fields hold them as numbers
    /^typedef struct .*{/ { struct = $3; next }
    /^}/ { for (i = 0; i < n; ++i) {
             name = struct "_" field[i]
             printf "enum place_of_%s { %s_is_at = offsetof(%s, %s) };\n", name, name, struct, field[i]
             printf "void field_%s(__typeof__(((%s*)0)->%s) value, enum place_of_%s at) { (void)value, (void)at; }\n",
               name, struct, field[i], name }
           struct = ""; n = 0 }
    struct && /;/ { sub(/ *; *$/, ""); sub(/\)\(.*/, ""); sub(/.*[ *(]/, ""); field[n++] = $0 }
    /^ESPALIER_API/ { is_inside = 1 }
    is_inside { text = text " " $0 }
    is_inside && /;/ { sub(/; *$/, " { __builtin_trap(); }", text); print text; text = ""; is_inside = 0 }'
} >"$work/declared.c"
(cd "$work" && cc -std=c11 -g -O0 -fPIC -shared declared.c -Wl,-soname,libespalier.so -o libespalier.so)

if [ -n "$renew" ]; then
  abidw --no-corpus-path --no-comp-dir-path --no-show-locs --no-architecture "$work/libespalier.so" >"$work/abi"
  mv "$work/abi" "$here/espalier.abi"
  exit
fi
printf '[suppress_type]\n  type_kind = struct\n' >"$work/allowed"  # fields speak for themselves
abidiff --no-added-syms --no-architecture --suppressions "$work/allowed" "$old" "$work/libespalier.so" ||
  { echo "espalier.h breaks programs that were built with the last release's" >&2; exit 1; }
