#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# blocks_test.sh PYTHON: blocks.py on pages that are wrong in one way each, and on one that is right.
set -euo pipefail
python=${1:-python3}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/build"
status=0

# expect STATUS WORDS: the page on standard input; `'''` stands for a fence.
expect() {
  local ended=0 said
  sed "s/'''/\`\`\`/" >"$folder/page.md"
  said=$("$python" "$here/blocks.py" "$folder/page.md" "$folder/work" --build "$folder/build" --cxx "${CXX:-c++}" 2>&1) || ended=$?
  if [ "$ended" -ne "$1" ] || ! grep -qF -- "$2" <<<"$said"; then
    printf 'status %s, expected %s with "%s":\n%s\n-- for --\n%s\n' "$ended" "$1" "$2" "$said" "$(cat "$folder/page.md")"
    status=1
  fi
}

expect 1 "page.md:2: its language is ''" <<<$'\'\'\'\necho hello\n\'\'\''
expect 1 "its language is 'yaml'" <<<$'\'\'\'yaml\na: 1\n\'\'\''
expect 1 'page.md:3: a block that is set in' <<<$'words\n\n    echo hello'
expect 1 'the last block does not end' <<<$'\'\'\'sh\necho hello'
expect 1 'ended with 3, expected 0' <<<$'\'\'\'sh\nexit 3\n\'\'\''
expect 1 'ended with 1, expected 0' <<<$'\'\'\'sh\nfalse\ntrue\n\'\'\''
expect 1 'ended with 0, expected 2' <<<$'<!-- ends with: 2 -->\n\'\'\'console\n$ true\n\'\'\''
expect 1 'printed:' <<<$'\'\'\'console\n$ echo hello\ngoodbye\n\'\'\''
expect 1 'printed:' <<<$'\'\'\'console\n$ echo hello; echo more\nhello\n\'\'\''
expect 1 'does not begin with a command' <<<$'\'\'\'console\nhello\n\'\'\''
expect 1 'not JSON' <<<$'\'\'\'json\n{"a": n}\n\'\'\''
expect 1 'not JSON' <<<$'\'\'\'jsonl\n{"a": 1}\n{"a": }\n\'\'\''
expect 1 'page.md:4:' <<<$'\'\'\'cpp\n#include <vector>\n\nstd::vector<int> v = nothing;\n\'\'\''
expect 1 'page.md:3:' <<<$'\'\'\'c\n#include <stddef.h>\nsize_t n = "text";\n\'\'\''
expect 1 'line 2:' <<<$'\'\'\'python\nx = 1\nif x\n\'\'\''
expect 1 'page.md", line 6' <<<$'\'\'\'python\nx = 1\n\'\'\'\n\'\'\'python\n\nassert x == 2\n\'\'\''
expect 77 'no_such_program is not there' <<<$'<!-- needs: no_such_program -->\n\'\'\'sh\nno_such_program\n\'\'\''
expect 77 'the Python module no_such_module is not there' <<<$'<!-- needs: no_such_module -->\n\'\'\'python\nimport no_such_module\n\'\'\''
expect 0 '10 blocks: 1 not run, 1 written, 4 run, 1 read, 2 compiled, 1 text' <<'PAGE'
<!-- not run: nobody has it -->
'''sh
no_such_program
'''

- a list, whose items

    go on set in

<!-- file: folder/hello.txt -->
'''text
hello
'''
'''console
$ cat folder/hello.txt; \
  echo and more 1
hello
and more …
$ true
$ printf '1\n2\n3\n'
1
…
'''
<!-- with: here = LICENSE, there = folder/hello.txt -->
'''sh
grep -q Apache here && grep -q hello there
'''
'''json
{"a": [1, 2]}
'''
'''cpp
#include <vector>
std::vector<int> v = {1};
'''
'''c
#include <stddef.h>
size_t n = 1;
'''
'''python
one = 1
'''
<!-- with: somewhere = LICENSE -->
'''python
assert one + one == 2 and "Apache" in open("somewhere").read()
'''
'''text
anything
'''
PAGE
exit $status
