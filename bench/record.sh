#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# `./dev record`: measures on this machine's processor what bench/README.md quotes, and keeps it under bench/results/.
# `dev` has built the programs; the machine should be otherwise idle.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'HELP'
usage: ./dev record [ops] [shots] [--seconds S] [--size SIZE] [--repeat N] [--out DIR]

  ops    every program of bench/kernels: DATE_cpu_ops.jsonl, .txt (all rows) and .html (plots)            about 15 minutes
  shots  1, 2, 4, 8 and 16 shots, unpruned and catp:keep_ratio=2/9, on a random checkpoint of a LLaVA with a decoder
         of about 500 M parameters: DATE_cpu_SIZE_shots.jsonl, .txt, .html and .svg                10 to 30 minutes
  Without a part, both. Nothing of an earlier recording is replaced before the new one is complete.

  --seconds S  what a row of ops may take (default 0.5)        --size SIZE  of the checkpoint (default 500m)
  --repeat N   runs of shots at least (default 3)             --out DIR    instead of bench/results
HELP
}
fail() { printf 'dev record: %s\n' "$1" >&2; exit 2; }

programs=(attention attention_growth attention_probe cosine linear row selection)
build='' parts=() seconds=0.5 size=500m repeat=3 out=bench/results
while [ $# -gt 0 ]; do
  case "$1" in
    --build) build=${2:?--build needs a folder}; shift 2 ;; # from dev
    --seconds) seconds=${2:?--seconds needs a number}; shift 2 ;;
    --size) size=${2:?--size needs a size}; shift 2 ;;
    --repeat) repeat=${2:?--repeat needs a number}; shift 2 ;;
    --out) out=${2:?--out needs a folder}; shift 2 ;;
    ops | shots) parts+=("$1"); shift ;;
    help | -h | --help) usage; exit ;;
    *) fail "unknown option '$1'; ./dev record --help" ;;
  esac
done
[ ${#parts[@]} -gt 0 ] || parts=(ops shots)
command -v python3 >/dev/null || fail 'python3 is not on PATH'
[ -x "$build/bin/espalier" ] || fail "no programs in '$build/bin'; call ./dev record, which builds them"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
date=$(date -u +%Y-%m-%d)
commit=$(git rev-parse HEAD 2>/dev/null || echo unknown)
git diff --quiet HEAD 2>/dev/null || commit+=' (with changes)'
printf '{"device": "%s, %s cores", "date": "%s", "commit": "%s"}\n' \
  "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)" "$(nproc)" "$(date -u +%Y-%m-%dT%H:%MZ)" "$commit" >"$work/machine.json"

# keep NAME: the table and the plots of NAME.jsonl, then all of them to their place.
keep() {
  python3 bench/report.py --out "$work/done" --name "$1" --machine "$work/machine.json" "$work/$1.jsonl"
  mkdir -p "$out"
  mv "$work/$1.jsonl" "$work/done/$1".* "$out/"
}

for part in "${parts[@]}"; do
  case $part in
    ops)
      name=${date}_cpu_ops
      for program in "${programs[@]}"; do
        "$build/bin/${program}_bench" --seconds "$seconds" --json "$work/$name.jsonl"
      done
      ;;
    shots)
      name=${date}_cpu_${size}_shots
      "$build/bin/make_checkpoint" --size "$size" --out "$work/model"
      "$build/bin/espalier" bench --model "$work/model" --dtype bf16 --shots 1,2,4,8,16 --repeat "$repeat" --new-tokens 8 \
        --policy none --policy catp:keep_ratio=2/9 --json "$work/$name.jsonl"
      rm -r "$work/model"
      ;;
  esac
  keep "$name"
done
