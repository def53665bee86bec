#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The rules about files that no compiler checks: who may include whom (data flows one way, see README.md), which units see
# libtorch, a class defined once, no environment switches, no left-over notes, and no text that names a file which is not there.
# Prints one line for each violation; exit status 1 if there is any. Argument: the folder to check (default: this repository).
set -euo pipefail
cd "${1:-$(dirname "${BASH_SOURCE[0]}")/..}"

violations=$(mktemp)
trap 'rm -f "$violations"' EXIT

# files FOLDER... : sources below the folders that exist.
files() {
  local folder there=()
  for folder in "$@"; do
    if [ -e "$folder" ]; then there+=("$folder"); fi
  done
  [ ${#there[@]} -eq 0 ] ||
    find "${there[@]}" -type f \( -name '*.c' -o -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \) | LC_ALL=C sort
}

# forbid RULE PATTERN FILE... : no line of the files may match.
forbid() {
  local rule=$1 pattern=$2
  shift 2
  [ $# -eq 0 ] || { grep -HnE "$pattern" "$@" || true; } | sed "s|\$|   [$rule]|" >>"$violations"
}

# own_includes RULE ALLOWED FILE... : what the files include of this project must match.
own_includes() {
  local rule=$1 allowed=$2
  shift 2
  [ $# -eq 0 ] || { grep -HnE '#include "' "$@" || true; } |
    { grep -vE "#include \"($allowed)" || true; } | sed "s|\$|   [$rule]|" >>"$violations"
}

# ---- who may include whom ----
mapfile -t public < <(files include)
mapfile -t base < <(files src/base)
mapfile -t jinja < <(files src/jinja)
mapfile -t text < <(files src/text)
mapfile -t pictures < <(files src/pictures)
mapfile -t model < <(files src/model)
mapfile -t families < <(files src/families)
mapfile -t layout < <(files src/layout)
mapfile -t pruning < <(files src/pruning)
mapfile -t runtime < <(files src/runtime)
mapfile -t recording < <(files src/recording)
mapfile -t questions < <(files src/questions)
mapfile -t synth < <(files src/synth)
mapfile -t report < <(files src/report)
mapfile -t evaluation < <(files src/eval)
mapfile -t conformance < <(files src/conformance)
mapfile -t serve < <(files src/serve)
mapfile -t inspect < <(files src/inspect)
mapfile -t c_api < <(files src/c_api)
mapfile -t cli < <(files src/cli)
mapfile -t program < <(files src/program)
mapfile -t training < <(files src/training)
mapfile -t kernels < <(files kernels)
mapfile -t examples < <(files examples tests/consumer)
mapfile -t bindings < <(files bindings)
mapfile -t library < <(files include src kernels)
mapfile -t not_training < <(files include src kernels | grep -vE '^src/training/|^include/espalier/training\.h$')
mapfile -t not_base < <(files include src kernels | grep -v '^src/base/')
mapfile -t not_http < <(files include src kernels | grep -v '^src/serve/http\.cpp$')
mapfile -t all < <(files include src kernels bench bindings examples tests)
mapfile -t source_folders < <(ls -d bench bindings cmake examples include kernels models src tests 2>/dev/null)

own_includes 'public headers know public headers only' 'espalier/' "${public[@]}"
own_includes 'base knows nothing: base/ and public headers' 'base/|espalier/' "${base[@]}"
own_includes 'jinja is a language: jinja/, base/' '(jinja|base)/|espalier/error\.h' "${jinja[@]}"
own_includes 'text knows bytes: text/, jinja/, base/ and public headers' '(text|jinja|base)/|espalier/' "${text[@]}"
own_includes 'pictures knows bytes: pictures/, base/ and public headers' '(pictures|base)/|espalier/' "${pictures[@]}"
own_includes 'model knows tensors: model/, base/, ops.h, the layout' \
  '(model|base)/|espalier/(ops|error|token_layout|generation)\.h' "${model[@]}"
own_includes 'families join pictures and model: families/, model/, pictures/, base/, the layout' \
  '(families|model|pictures|base)/|espalier/(error|image|token_layout)\.h' "${families[@]}"
own_includes 'layout knows tokens: layout/, base/ and public headers' '(layout|base)/|espalier/' "${layout[@]}"
own_includes 'pruning knows decisions: pruning/, base/{random,error_text,closest}.h and public headers' 'pruning/|base/(random|error_text|closest)\.h|espalier/' "${pruning[@]}"
own_includes 'runtime joins what lies below; nothing above it' \
  '(runtime|layout|pruning|families|model|pictures|text|base|kernels)/|espalier/' "${runtime[@]}"
own_includes 'recording stands on runtime' '(recording|runtime|layout|pruning|families|model|base)/|espalier/' "${recording[@]}"
own_includes 'questions ask through the public headers' '(questions|base)/|espalier/' "${questions[@]}"
own_includes 'synth draws and words: synth/, base/ and pictures/ for its files' '(synth|base|pictures|text|model)/|espalier/' "${synth[@]}"
own_includes 'conformance plays a runtime to policies' '(conformance|layout|recording)/|espalier/' "${conformance[@]}"
own_includes 'inspect draws what runtime tells' '(inspect|runtime|layout|pictures|base)/|espalier/' "${inspect[@]}"
own_includes 'serve shows what the public headers can do' 'serve/|espalier/' "${serve[@]}"
own_includes 'c_api says the public headers in C' 'c_api/|espalier/' "${c_api[@]}"
own_includes 'eval asks the runtime what synth draws' '(eval|synth|runtime|layout|pruning|report|base)/|espalier/' "${evaluation[@]}"
own_includes 'report draws numbers and knows nothing of models' 'report/' "${report[@]}"
own_includes 'cli asks runtime and recording; base, text and pictures for its files' \
  '(eval|cli|serve|runtime|recording|layout|inspect|questions|base|text|pictures|synth)/|families/families\.h|model/(checkpoint|generation_config)\.h|kernels/support/cpu_level\.h|espalier/' "${cli[@]}"
own_includes 'the program starts the command line' '(cli|program)/|espalier/espalier\.h' "${program[@]}"
forbid 'the program loads libtorch only when it has to' '#include <(ATen|c10|torch)/' "${program[@]}"
own_includes 'training stands beside runtime' \
  '(training|synth|report|runtime|recording|layout|pictures|text|base|families|model|pruning|kernels)/|espalier/' "${training[@]}"
own_includes 'kernels know pointers: kernels/, ops.h and op_choices.h' 'kernels/|espalier/(ops|op_choices)\.h' "${kernels[@]}"
own_includes 'examples use public headers only' 'espalier/' "${examples[@]}"
own_includes 'bindings stand on public headers' 'espalier/|(crossing|engine|policy|request|result)\.h' "${bindings[@]}"

# ---- who sees libtorch and the other libraries ----
readonly torch='#include <(ATen|c10|torch)/'
forbid 'base, jinja, text, pictures and synth have no tensors' "$torch" "${base[@]}" "${jinja[@]}" "${text[@]}" "${pictures[@]}" "${synth[@]}"
forbid 'torch/torch.h only in training and tests' '#include <torch/(torch|all)\.h>' "${not_training[@]}"
forbid 'per-operator headers, not ATen/ATen.h' '#include <ATen/(ATen|Functions)\.h>' "${library[@]}"
forbid 'users need libtorch alone' '#include <(nlohmann|spdlog|CLI|fmt|pcre2|Eigen)' "${public[@]}"
forbid 'Beast in one unit of serve, and in its tests' '#include <boost/' "${not_http[@]}"
forbid 'spdlog only in base' '#include <(spdlog|fmt)/' "${not_base[@]}"
forbid 'pruning: the standard library and libtorch' '#include <(nlohmann|spdlog|CLI|fmt|pcre2|Eigen)' "${pruning[@]}"

# Device code and units with AVX flags include no libtorch header, through no header of ours either (build time; and inline
# functions compiled with AVX could be the copy that the linker keeps for everyone).
seen=''
without_torch() {
  local file=$1 unit=$2 header
  if [[ " $seen " == *" $file "* || ! -f $file ]]; then return; fi
  seen+=" $file"
  { grep -HnE "$torch" "$file" || true; } | sed "s|\$|   [no libtorch header in $unit]|" >>"$violations"
  while read -r header; do without_torch "$header" "$unit"; done < <(sed -nE 's/^#include "([^"]*)".*/\1/p' "$file")
}
for unit in "${kernels[@]}"; do
  case "$unit" in
    *.cu | *.cuh | *_amx.cpp | *_avx2.cpp | *_avx512.cpp | *_vector.cpp) seen=''; without_torch "$unit" "$unit" ;;
  esac
done

# ---- habits ----
forbid 'no environment variables as switches' '\b(secure_)?getenv\(' "${library[@]}"
forbid 'no left-over notes' '\b(TODO|FIXME|XXX)\b' "${all[@]}"
awk 'FNR == 1 && $0 != "// SPDX-License-Identifier: Apache-2.0" {print FILENAME ":1: no SPDX line"}' \
  "${all[@]}" </dev/null >>"$violations"

# Two definitions of one name are two meanings in one library, and the linker keeps the inline functions of either. Names in
# no namespace of their own file's, at the first column as clang-format leaves them.
awk '
  FNR == 1 { depth = 0 }
  /^(inline )?namespace [A-Za-z0-9_:]* ?[{]/ || /^namespace [{]/ {
    name = $0; sub(/^(inline )?namespace */, "", name); sub(/ *[{].*/, "", name)
    inside[++depth] = name
  }
  /^}  \/\/ (inline )?namespace/ && depth > 0 { --depth }
  /^(class|struct|enum class|enum) [A-Za-z_]/ && !/^[^{]*;/ && !/^[a-z ]*[A-Za-z_0-9]+</ {
    path = ""
    for (i = 1; i <= depth; ++i) { if (inside[i] == "") next; path = path inside[i] "::" }
    name = $0; sub(/^(class|struct|enum class|enum) /, "", name)
    sub(/[^A-Za-z0-9_:].*/, "", name); sub(/:$/, "", name)
    print path name "\t" FILENAME ":" FNR
  }' "${library[@]}" </dev/null | LC_ALL=C sort | awk -F'\t' '
  $1 == name { print $2 ": " $1 " is defined at " place " too   [a class is defined once]" }
  $1 != name { name = $1; place = $2 }' >>"$violations"

# ---- texts name files that exist ----
# In a source: a page, wherever a comment names it; by its path from here or from the file, or alone, beside the file or here.
while IFS=: read -r file line path; do
  [ -e "$path" ] || [ -e "$(dirname "$file")/$path" ] || echo "$file:$line: names $path, which is not there" >>"$violations"
done < <({ grep -nroE --include='*.c' --include='*.cpp' --include='*.h' --include='*.cu' --include='*.cuh' '(^| )// .*' "${source_folders[@]}"
           grep -nroE --include='*.py' --include='*.sh' --include='*.cmake' --include='*.txt' '(^| )# .*' "${source_folders[@]}"
         } | awk -F: '{ comment = $0; sub(/^[^:]*:[^:]*:/, "", comment)
                        while (match(comment, /[A-Za-z0-9_.\/*-]*[A-Za-z0-9_*]\.md/)) {
                          path = substr(comment, RSTART, RLENGTH)
                          if (path !~ /^\// && path !~ /\*/) print $1 ":" $2 ":" path
                          comment = substr(comment, RSTART + RLENGTH)
                        } }')

# A path is a word that begins with a folder of this repository, wherever it stands; * stands for itself.
while read -r document; do
  folder=$(dirname "$document")
  while IFS=: read -r line path; do
    path=${path%.}
    compgen -G "$path" >/dev/null || compgen -G "$folder/$path" >/dev/null ||
      echo "$document:$line: names $path, which is not there" >>"$violations"
  done < <(grep -noE '(^|[^A-Za-z0-9_./-])(\.ci|bench|bindings|cmake|docs|examples|include|kernels|models|src|tests)/[A-Za-z0-9_./*-]*' \
             "$document" | sed -E 's/^([0-9]+):[^A-Za-z.]?/\1:/')
  while IFS=: read -r line path; do
    [ -e "$folder/$path" ] || echo "$document:$line: links to $path, which is not there" >>"$violations"
  done < <(awk '/^ *```/ { in_code = !in_code } { print in_code ? "" : $0 }' "$document" | grep -noE '\]\([^)]+\)' | sed -nE '/\]\((#|[a-z]+:)/!s/\]\(([^)#]*).*/\1/p')
done < <(find . -type d \( -name .git -o -name .deps -o -name build \) -prune -o -name '*.md' -print)

cat "$violations"
[ ! -s "$violations" ]
