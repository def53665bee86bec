#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# site.sh FOLDER: builds the site of docs/ in FOLDER. Comments of the headers must be in it, and what Doxygen warns of must fail.
set -euo pipefail
out=${1:?site.sh FOLDER}
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
rm -rf "$out"
mkdir -p "$out"

docs/site/build.sh "$out/whole"  # 77 without Doxygen: skipped
status=0
expect() {
  grep -qF "$2" "$out/whole/html/$1" || { echo "site: $1 has no '$2'"; status=1; }
}
expect classespalier_1_1Engine.html 'concurrent calls on one <a class="el"'     # above a class
expect structespalier_1_1GenerationOptions.html 'plain argmax: no sampling'     # behind a member
expect structespalier_1_1AttentionProbe.html 'the class row of each crop; columns: the crop'  # behind an enumerator
expect structespalier_1_1AttentionProbe.html 'sequence order'                   # and its second line
expect engine_8h.html 'Loads a checkpoint folder and answers requests'          # of a file
expect policy__conformance_8h.html '>using espalier::PolicyConformance;'              # code in a comment
expect formats.html 'formats-recipes">Recipes</a>'                        # a link within a page
expect index.html 'href="serve.html"'                                           # a page that a text names

cp --parents -r README.md CHANGELOG.md CMakeLists.txt docs include "$out"
for broken in '[a section](serve.md#no-such-section)' '[a page](no_such_page.md)'; do
  cp docs/build.md "$out/docs/build.md"
  printf '\n%s\n' "$broken" >>"$out/docs/build.md"
  if "$out/docs/site/build.sh" "$out/broken" >"$out/broken.log" 2>&1; then
    echo "site: '$broken' passes without a word"
    status=1
  elif ! grep -q 'unable to resolve reference' "$out/broken.log"; then
    cat "$out/broken.log"
    status=1
  fi
done
exit $status
