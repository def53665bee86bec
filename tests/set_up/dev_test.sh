#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# `./dev` where it cannot help itself: an unknown verb, a libtorch that is not there, a machine without root. It must say
# what to do, end with 2, and touch nothing.
set -euo pipefail
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir -p "$folder/bin" "$folder/copy/bench"
cp "$top/dev" "$folder/copy/dev"
cp "$top/bench/gpu.sh" "$top/bench/record.sh" "$folder/copy/bench/"

expect() { # WORDS COMMAND...: ends with 2 and says the words
  local words=$1 status=0 said
  shift
  said=$("$@" 2>&1 </dev/null) || status=$?
  [ "$status" -eq 2 ] || { echo "$*: exit status $status, expected 2: $said"; exit 1; }
  grep -qF -- "$words" <<<"$said" || { echo "$*: '$words' is not in: $said"; exit 1; }
}

# A machine with a shell, someone who is not root, and none of the compilers.
for tool in bash env cat dirname grep sed head nproc; do ln -s "$(command -v $tool)" "$folder/bin/$tool"; done
printf '#!/bin/sh\necho 1000\n' >"$folder/bin/id"
printf '#!/bin/sh\necho "apt-get was called: $*"; exit 1\n' >"$folder/bin/apt-get"
chmod +x "$folder/bin/id" "$folder/bin/apt-get"
bare=(env -i "PATH=$folder/bin" "$folder/copy/dev")

expect "unknown verb 'biuld'" "${bare[@]}" biuld
expect 'not root; please run as root: apt-get install g++ cmake ninja-build' "${bare[@]}" build
expect 'not root; please run as root: apt-get install g++ cmake ninja-build' "${bare[@]}" demo
expect 'clang-tidy clang-format git' "${bare[@]}" lint
expect 'apt-get install doxygen python3' "${bare[@]}" docs
rm "$folder/bin/apt-get"
expect 'no apt-get; please install: apt-get install g++ cmake ninja-build' "${bare[@]}" test
expect "--libtorch $folder: no include/ATen/core/Tensor.h" "$folder/copy/dev" build --libtorch "$folder"
expect 'nvidia-smi finds no GPU here' "${bare[@]}" gpu
expect 'this system has no dpkg' "${bare[@]}" gpu --pack
expect "unknown option '--fast'" "${bare[@]}" gpu --fast
expect "package: unknown argument '--fast'" "${bare[@]}" package --fast
expect "no fuzz target 'jpg'" "$top/dev" fuzz jpg
expect 'no tests/everything' "$top/dev" sanitize everything
"${bare[@]}" gpu --help | grep -q '^usage: ./dev gpu'
"${bare[@]}" record --help | grep -q '^usage: ./dev record'
expect 'no programs in' env "PATH=$PATH" "$folder/copy/bench/record.sh" --build "$folder/nothing" ops
expect "unknown option '--fast'" env "PATH=$PATH" "$folder/copy/bench/record.sh" --fast
[ "$(ls -A "$folder/copy" | tr '\n' ' ')" = 'bench dev ' ] || { echo "left behind: $(ls -A "$folder/copy")"; exit 1; }
"${bare[@]}" help | grep -q '^usage: ./dev VERB'
