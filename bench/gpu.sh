#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# `./dev gpu`: builds, tests and measures the CUDA side on a machine that has an NVIDIA GPU, its compiler and a libtorch, but no
# network and none of our system packages; `./dev gpu --pack` puts those into a folder that travels with the working tree.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'HELP'
usage: ./dev gpu [--out DIR] [--minutes N] [--jobs N] [--libtorch DIR] [--only PART,...]
       ./dev gpu --pack

  Needs on the machine: an NVIDIA GPU with nvidia-smi, nvcc 13, g++ (C++20), cmake 3.25 or later, ninja, and a python3 that can
  import torch 2.11 (its folder is the libtorch; --libtorch names another one). Everything else it takes from .pack/, if that is
  there, and else from the system. `--pack` fills .pack/ (a few MB, ignored by git) on a machine that has the packages installed.
  Bring along the working tree and a fresh .pack/ (it notes the commit, where .git stays behind); nothing is fetched, nothing
  outside build/gpu/ and DIR is written.

  Parts, one after the other, so that a stop cuts off only the last:
    build      kernels, their tests and benchmarks, for this GPU's architecture alone
    tests      the CUDA cases of the kernel tests
    sanitizer  compute-sanitizer (memcheck, racecheck) over one small call of every op
    program    builds the program (begun behind the scenes while the tests run)
    ops        the op benchmarks on CUDA: ops.jsonl
    graphs     the bundled model's answers with recorded decoding steps and with launched ones: they must be the same
    end        a 7B shape with random weights, four shots: end_to_end.jsonl, once more without recorded steps:
               launches.jsonl, beside Transformers where Python has it: transformers.jsonl, by shots: shots.jsonl

  --out DIR      where results go (default build/gpu/results): machine.json, log.txt, the .jsonl files, table.txt, plots.html
  --minutes N    what all parts together may take (default 9.5); a part that does not end in time is stopped, and said so
  --only PART,...  these parts alone, for what an earlier call did not come to; the build is kept
HELP
}

say() { printf '%s\n' "$*" >&2; }
fail() { say "dev gpu: $1"; exit 2; }

# ---- what travels along ----

readonly pack=.pack packages=build/gpu/packages
readonly packed=(nlohmann-json3-dev libcli11-dev libspdlog-dev libspdlog1.10 libfmt-dev libfmt9 libpcre2-dev libpcre2-8-0
  libutf8proc-dev libutf8proc2 libturbojpeg0-dev libturbojpeg0 libpng-dev libpng16-16 zlib1g-dev zlib1g libwebp-dev libwebp7
  libgtest-dev pkgconf-bin libpkgconf3)

# The files of the installed packages, links as copies, in one archive; beside it the commit, since .git may stay behind.
make_pack() {
  local package missing=() folder
  command -v dpkg >/dev/null || fail '--pack copies installed Debian packages; this system has no dpkg'
  for package in "${packed[@]}"; do dpkg -L "$package" >/dev/null 2>&1 || missing+=("$package"); done
  [ ${#missing[@]} -eq 0 ] || fail "not installed: ${missing[*]}   (names of Debian 12; ./dev build installs most of them)"
  folder=$(mktemp -d)
  dpkg -L "${packed[@]}" | grep -E '^/(usr/(bin|include|share/cmake|lib)|lib)/' |
    grep -vE '\.a$|libpcre2-(16|32|posix)|/libgmock' | sort -u >"$folder/list"
  dpkg -L libgtest-dev | grep -E '/libgtest(_main)?\.a$' >>"$folder/list"
  mkdir "$folder/tree"
  # -h: what is behind a link. Folders come by their files.
  while read -r file; do if [ -f "$file" ]; then printf '%s\n' "$file"; fi; done <"$folder/list" |
    tar -ch --no-recursion -T - 2>/dev/null | tar -x -C "$folder/tree"
  if [ -d "$folder/tree/lib" ]; then cp -r "$folder/tree/lib" "$folder/tree/usr/" && rm -r "$folder/tree/lib"; fi
  # Paths inside .pc files are made relative to where the archive is unpacked.
  find "$folder/tree" -name '*.pc' -exec sed -i -e 's|^prefix=.*|prefix=${pcfiledir}/../../..|' -e 's|=/usr/|=${prefix}/|' {} +
  mkdir -p "$folder/tree/bin"
  cat >"$folder/tree/bin/pkg-config" <<'WRAPPER'
#!/bin/sh
usr=$(cd "$(dirname "$0")/../usr" && pwd)
PKG_CONFIG_LIBDIR=$(echo "$usr"/lib/*/pkgconfig) LD_LIBRARY_PATH=$(echo "$usr"/lib/*-linux-gnu) exec "$usr/bin/pkgconf" "$@"
WRAPPER
  chmod +x "$folder/tree/bin/pkg-config"
  rm -rf "$pack"
  mkdir "$pack"
  tar -cz -C "$folder/tree" -f "$pack/packages.tar.gz" .
  { git rev-parse HEAD && git diff --quiet HEAD || echo '(with changes)'; } 2>/dev/null | tr '\n' ' ' >"$pack/commit"
  rm -rf "$folder"
  # Files that are deleted but not yet committed are listed too.
  { git ls-files -z && git ls-files -z --others --exclude-standard && printf '%s\0' "$pack"/*; } |
    { xargs -0 du -cb 2>/dev/null || true; } | tail -n 1 | awk '{printf "the working tree with .pack: %.1f MB\n", $1 / 1e6}' >&2
}

# ---- the machine ----

find_machine() {
  command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1 || fail 'nvidia-smi finds no GPU here'
  if ! command -v nvcc >/dev/null && [ -x /usr/local/cuda/bin/nvcc ]; then PATH=$PATH:/usr/local/cuda/bin; fi
  local tool
  for tool in nvcc g++ cmake ninja python3; do command -v $tool >/dev/null || fail "$tool is not on PATH"; done
  if [ -z "$libtorch" ]; then
    libtorch=$(python3 -c 'import importlib.util as u; s = u.find_spec("torch"); print(s.submodule_search_locations[0] if s else "")')
    [ -n "$libtorch" ] || libtorch=$PWD/.deps/libtorch/torch
  fi
  [ -f "$libtorch/lib/libtorch_cuda.so" ] || fail "no libtorch with CUDA in '$libtorch'; name one with --libtorch"
  gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader -i 0)
  architecture=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader -i 0 | tr -d .)
}

machine_json() {
  local commit
  commit=$(git rev-parse HEAD 2>/dev/null || cat "$pack/commit" 2>/dev/null || echo unknown)
  printf '{"device": "%s", "compute_capability": "%s", "driver": "%s", "cuda": "%s", "date": "%s", "commit": "%s", "cores": %s}\n' \
    "$gpu" "$architecture" "$(nvidia-smi --query-gpu=driver_version --format=csv,noheader -i 0)" \
    "$(nvcc --version | sed -nE 's/.*release ([0-9.]+).*/\1/p')" "$(date -u +%Y-%m-%dT%H:%MZ)" "${commit% }" "$(nproc)"
}

# ---- parts ----

readonly build=build/gpu/build

configure() {
  local from_pack=()
  if [ -f "$pack/packages.tar.gz" ]; then
    rm -rf "$packages"
    mkdir -p "$packages"
    tar -xz -C "$packages" -f "$pack/packages.tar.gz"
    # The archive has Debian's folders, whatever the compiler here thinks of them.
    from_pack=(-DCMAKE_PREFIX_PATH="$PWD/$packages/usr" -DPKG_CONFIG_EXECUTABLE="$PWD/$packages/bin/pkg-config"
      -DCMAKE_LIBRARY_ARCHITECTURE="$(basename "$packages"/usr/lib/*-linux-gnu)")
  fi
  cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DESPALIER_CUDA="$cuda" -DESPALIER_EXAMPLES=OFF \
    -DCMAKE_CUDA_ARCHITECTURES="$architecture-real" -DLibTorch_ROOT="$libtorch" "${from_pack[@]}"
}

part_build() {
  configure
  ninja -C "$build" -j "$jobs" kernels_tests attention_bench attention_growth_bench attention_probe_bench cosine_bench linear_bench \
    row_bench selection_bench
}

# In shards beside each other: what takes time are the oracles, plain loops on the CPU.
part_tests() {
  local shard status=0 shards=8 pids=()
  for ((shard = 0; shard < shards; ++shard)); do
    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive GTEST_TOTAL_SHARDS=$shards GTEST_SHARD_INDEX=$shard "$build/bin/kernels_tests" \
      --gtest_brief=1 --gtest_filter='*cuda*:*Cuda*:*CUDA*' >"build/gpu/tests.$shard.txt" 2>&1 &
    pids+=($!)
  done
  for shard in "${!pids[@]}"; do
    wait "${pids[$shard]}" || status=1
    cat "build/gpu/tests.$shard.txt"
  done
  return $status
}

# Every op on small inputs. Without the library's memory pool, whose blocks would hide an access beyond a tensor.
part_sanitizer() {
  command -v compute-sanitizer >/dev/null || { echo 'no compute-sanitizer on PATH'; return 1; }
  local tool status=0
  for tool in memcheck racecheck; do
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $tool --error-exitcode 9 "$build/bin/kernels_tests" \
      --gtest_brief=1 --gtest_filter='Devices/ChosenKernelsTest.EveryOpReports/cuda*:Devices/DispatchTest.*/cuda*' || status=1
  done
  return $status
}

part_ops() {
  local bench status=0
  rm -f "$out/ops.jsonl"
  for bench in attention_growth_bench attention_probe_bench selection_bench row_bench cosine_bench linear_bench attention_bench; do
    "$build/bin/$bench" --device "$device" --seconds 0.1 --json "$out/ops.jsonl" || status=1
  done
  return $status
}

# The tests leave most cores idle; two ninjas in one folder would not get along, so nothing else is built meanwhile.
begin_program() {
  case ",$only," in *,program,* | ,,) ;; *) return ;; esac
  [ -f "$build/build.ninja" ] || return 0
  nice -n 10 ninja -C "$build" -j "$jobs" espalier_cli make_checkpoint >build/gpu/program.txt 2>&1 &
  program=$!
  trap 'kill "$program" 2>/dev/null || true' EXIT
}

part_program() {
  while [ -n "$program" ] && kill -0 "$program" 2>/dev/null; do sleep 1; done
  [ -f "$build/build.ninja" ] || configure
  ninja -C "$build" -j "$jobs" espalier_cli make_checkpoint
}

# In float32, where a different order of sums decides no word.
part_graphs() {
  local espalier=$build/bin/espalier folder=build/gpu/graphs chat
  rm -rf "$folder"
  mkdir -p "$folder"
  for chat in examples/demo/*/messages.json; do
    for steps in recorded launched; do
      local option=()
      [ $steps = recorded ] || option=(--no-decode-graphs)
      "$espalier" generate --model models/demo --device "$device" --dtype f32 --chat "$chat" --policy catp:keep_ratio=2/9,k=4 \
        --max-new-tokens 40 --ignore-eos --greedy "${option[@]+"${option[@]}"}" >>"$folder/$steps.txt"
    done
  done
  cmp "$folder/recorded.txt" "$folder/launched.txt" && wc -c "$folder/recorded.txt"
}

part_end() {
  local model=build/gpu/model espalier=$build/bin/espalier status=0
  trap "rm -rf $model" EXIT
  "$build/bin/make_checkpoint" --size "$size" --out "$model"
  "$espalier" bench --model "$model" --device "$device" --dtype bf16 --shots 4 --repeat 5 --max-repeat 5 --new-tokens 64 \
    --policy none --policy catp:keep_ratio=2/9 --policy fastv:keep_ratio=2/9 --policy random:keep_ratio=2/9 \
    --json "$out/end_to_end.jsonl" || status=1
  "$espalier" bench --model "$model" --device "$device" --dtype bf16 --shots 4 --repeat 3 --max-repeat 3 --new-tokens 64 --no-decode-graphs \
    --policy none --policy catp:keep_ratio=2/9 --json "$out/launches.jsonl" || status=1
  if python3 -c 'import transformers' 2>/dev/null; then
    python3 bench/compare_transformers.py --model "$model" --espalier "$espalier" --device "$device" --rounds 2 --new-tokens 64 \
      --json "$out/transformers.jsonl" || status=1
  else
    echo 'no Transformers in this Python'
  fi
  "$espalier" bench --model "$model" --device "$device" --dtype bf16 --shots 1,2,4,8,16 --repeat 3 --max-repeat 3 --new-tokens 8 \
    --policy none --policy catp:keep_ratio=2/9 --json "$out/shots.jsonl" || status=1
  return $status
}

# run_part NAME: its output goes to the log and, shortened, to the screen; a line for the table says how it ended.
run_part() {
  local name=$1 began=$SECONDS left status=0
  left=$((limit - SECONDS))
  case ",$only," in *",$name,"* | ,,) ;; *) return ;; esac
  if [ "$left" -le 5 ]; then
    echo "$name: not begun, the time is up" >>"$ended"
    return
  fi
  say "== $name"
  printf '== %s\n' "$name" >>"$log"
  # A shell of its own, so that the limit ends the part with all its children.
  timeout --kill-after=5 "$left" bash -c "$(declare -p pack packages build out cuda device architecture libtorch jobs size gpu program PATH)
$(declare -f configure "part_$name")
set -euo pipefail
part_$name" >>"$log" 2>&1 || status=$?
  case $status in
    0) echo "$name: done in $((SECONDS - began)) s" ;;
    124 | 137) echo "$name: stopped after $((SECONDS - began)) s, the time was up" ;;
    *) echo "$name: FAILED after $((SECONDS - began)) s (log.txt)" ;;
  esac >>"$ended"
  tail -n 1 "$ended" >&2
  if [ $status -ne 0 ]; then tail -n 15 "$log" >&2; fi
}

out=build/gpu/results minutes=9.5 jobs=$(nproc) libtorch='' only='' size=7b cuda=ON device=cuda program=''
while [ $# -gt 0 ]; do
  case "$1" in
    --pack) make_pack; exit ;;
    --out) out=${2:?--out needs a folder}; shift 2 ;;
    --minutes) minutes=${2:?--minutes needs a number}; shift 2 ;;
    --jobs) jobs=${2:?--jobs needs a number}; shift 2 ;;
    --libtorch) libtorch=${2:?--libtorch needs a folder}; shift 2 ;;
    --only) only=${2:?--only needs parts}; shift 2 ;;
    help | -h | --help) usage; exit ;;
    *) fail "unknown option '$1'; ./dev gpu --help" ;;
  esac
done
find_machine
limit=$(awk -v m="$minutes" 'BEGIN {print int(60 * m)}')
mkdir -p "$out" build/gpu
out=$(cd "$out" && pwd)
log=$out/log.txt ended=build/gpu/ended.txt
: >"$log"
: >"$ended"
machine_json | tee "$out/machine.json" >&2
run_part build
begin_program
for part in tests sanitizer program graphs ops end; do run_part $part; done
python3 bench/report.py --folder "$out" --parts "$ended"
! grep -qE 'FAILED|stopped|not begun' "$ended"
