#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What the built library shows to a linker: its name with a version, no symbol but those of public headers, and without CUDA
# kernels none of CUDA's libraries.
#   library.sh LIBRARY HEADER_FOLDER SONAME HAS_CUDA
set -euo pipefail
library=$1 headers=$2 soname=$3 has_cuda=$4
status=0
complain() { echo "$library: $1" >&2; status=1; }

dynamic=$(readelf -d "$library")
grep -qF "Library soname: [$soname]" <<<"$dynamic" || complain "its SONAME is not $soname"
if [ "$has_cuda" != ON ] && grep -E 'NEEDED.*\[lib(cu|nv|torch_cuda|c10_cuda)' <<<"$dynamic" >&2; then
  complain "it is built without CUDA and needs these"
fi

exported=$(nm -D --defined-only "$library" | awk '{print $3}' | c++filt)
[ "$(wc -l <<<"$exported")" -ge 100 ] || complain "it exports too little"
# "vtable for espalier::Error", "espalier::ops::rope(at::Tensor…": the word that a header would have.
words=$(sed -E 's/^[a-z-]+( name)? (for|to) //' <<<"$exported" |
  sed -nE 's/^espalier::([a-z_]+::)*([A-Za-z_0-9]+).*/\2/p; s/^(espalier_[a-z0-9_]+)$/\1/p')
[ "$(wc -l <<<"$words")" -eq "$(wc -l <<<"$exported")" ] || {
  grep -vE '^([a-z-]+( name)? (for|to) )?espalier::|^espalier_[a-z0-9_]+$' <<<"$exported" | cut -c 1-100 | sed -n 1,10p >&2
  complain "it exports names of others, such as these"
}
while read -r word; do
  grep -qrw --include='*.h' -- "$word" "$headers" || complain "it exports $word, which no public header names"
done < <(LC_ALL=C sort -u <<<"$words")
# Insides whose names a header may have for something else.
for inside in espalier::cli:: espalier::kernels:: espalier::serve:: espalier::jinja:: ::Impl:: espalier::Sequence; do
  if sed -E 's/[(<].*//' <<<"$exported" | grep -F "$inside" >&2; then complain "it exports $inside"; fi
done
exit $status
